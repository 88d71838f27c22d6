//! Field names of deserialized types, which are the allowed keys of the settings file.

use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

/// Returns the field names of a struct in their serialized form; empty for other types.
pub(crate) fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // Always fails, after the struct has passed its field names.
    let _ = T::deserialize(FieldRecorder(&mut fields));
    fields
}

/// Returns the known word that is most similar, if any is similar enough.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let similarity = |known: &str| strsim::jaro(word, known);
    let best = known
        .iter()
        .max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    // The threshold of clap.
    (similarity(best) > 0.7).then_some(best)
}

/// Records the field names that `deserialize_struct` receives.
struct FieldRecorder<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldRecorder<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("nothing to read"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::profile_keys;

    #[test]
    fn fields_are_the_allowed_keys_of_a_table() {
        let fields = profile_keys();
        for field in ["program", "env", "jail", "restart_delay", "secrets"] {
            assert!(fields.contains(&field), "{field} is not in {fields:?}");
        }
        assert!(fields_of::<colibri_jail_core::JailConfig>().contains(&"ip4"));
        assert!(fields_of::<String>().is_empty());
        assert_eq!(nearest("runtme", &fields), Some("runtime"));
        assert_eq!(
            nearest("stat_dir", &["state_dir", "shim"]),
            Some("state_dir")
        );
        assert_eq!(nearest("xyz", &fields), None);
    }
}
