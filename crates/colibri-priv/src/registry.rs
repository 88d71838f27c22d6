//! Backends by name. The name is resolved once, at start, and used when a spawn requests a jail.

use std::collections::BTreeMap;
use std::sync::Arc;

use colibri_jail_core::JailEngine;

use crate::{Helper, Mdo, None, PrivBackend, PrivError};

/// The backends that can be selected by name.
#[derive(Clone, Default)]
pub struct BackendRegistry(BTreeMap<String, Arc<dyn PrivBackend>>);

impl BackendRegistry {
    /// Validates the name of a backend, as in `COLIBRI_JAIL_PRIV_MODE`. [`Self::get`] checks whether a backend
    /// has it.
    ///
    /// # Errors
    /// The name is invalid.
    pub fn check_name(name: &str) -> Result<(), PrivError> {
        let is_valid =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > 32 || !name.bytes().all(is_valid) {
            return Err(PrivError::Invalid(format!(
                "privilege backend name {name:?} is invalid; use lower-case letters, digits and '-'"
            )));
        }
        Ok(())
    }

    /// Returns the name of the default backend: `mdo` if the engine needs root, else `none`.
    #[must_use]
    pub fn default_name(engine: &dyn JailEngine) -> &'static str {
        if engine.needs_root() { "mdo" } else { "none" }
    }

    /// Returns a registry with `mdo`, `none`, and `helper` with the program at this path.
    #[must_use]
    pub fn builtin(helper: &str) -> Self {
        let backends: [Arc<dyn PrivBackend>; 3] =
            [Arc::new(Mdo), Arc::new(Helper::new(helper)), Arc::new(None)];
        Self(
            backends
                .map(|backend| (backend.name().to_owned(), backend))
                .into(),
        )
    }

    /// Adds a backend under its name.
    ///
    /// # Errors
    /// The name is taken or invalid.
    pub fn register(&mut self, backend: Arc<dyn PrivBackend>) -> Result<(), PrivError> {
        let name = backend.name();
        Self::check_name(name)?;
        if self.0.contains_key(name) {
            return Err(PrivError::Invalid(format!(
                "privilege backend {name:?} is registered already; give yours another name"
            )));
        }
        self.0.insert(name.to_owned(), backend);
        Ok(())
    }

    /// Returns the backend with this name.
    ///
    /// # Errors
    /// The name is unknown; the message lists the known names.
    pub fn get(&self, name: &str) -> Result<Arc<dyn PrivBackend>, PrivError> {
        self.0.get(name).cloned().ok_or_else(|| {
            let known = self.0.keys().cloned().collect::<Vec<_>>().join(", ");
            PrivError::Invalid(format!(
                "privilege backend {name:?} is unknown; give one of {known}"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_jail_core::{Bubblewrap, FreebsdJail};

    #[test]
    fn unknown_backend_lists_known_names() {
        let mut registry = BackendRegistry::builtin("/helper");
        for name in ["mdo", "helper", "none"] {
            assert_eq!(registry.get(name).unwrap().name(), name);
        }
        let unknown = registry.get("doas").err().unwrap().to_string();
        assert_eq!(
            unknown,
            "privilege backend \"doas\" is unknown; give one of helper, mdo, none"
        );
        let taken = registry.register(Arc::new(Mdo)).unwrap_err().to_string();
        assert!(taken.contains("\"mdo\" is registered already"), "{taken}");
        for bad in ["", "Mdo", "a b", "../x"] {
            let error = BackendRegistry::check_name(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?} is invalid")), "{error}");
        }
        assert_eq!(
            BackendRegistry::default_name(&FreebsdJail::default()),
            "mdo"
        );
        assert_eq!(
            BackendRegistry::default_name(&Bubblewrap::default()),
            "none"
        );
    }
}
