//! IPv4 policy of a jail: `ip4` and `ip4.addr` of jail(8).

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::JailError;

/// The IPv4 policy of an ephemeral jail.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Ip4Policy {
    /// The host's addresses, unrestricted.
    #[default]
    Inherit,
    /// No IPv4; with bubblewrap no network at all.
    Disable,
    /// A separate set of addresses, empty.
    New,
    /// A separate set with these addresses of the host's interfaces.
    Addresses(Vec<Ipv4Addr>),
}

impl FromStr for Ip4Policy {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let invalid = |what, value, problem| Err(JailError::invalid(what, value, problem));
        match text {
            "" => {
                let problem = "is empty; give inherit, disable, new, or addresses separated by ','";
                return invalid("`ip4`", text, problem);
            }
            "inherit" => return Ok(Self::Inherit),
            "disable" => return Ok(Self::Disable),
            "new" => return Ok(Self::New),
            _ => {}
        }
        let mut addresses = Vec::new();
        for entry in text.split(',') {
            let Ok(address) = entry.parse::<Ipv4Addr>() else {
                let problem = "is not an IPv4 address; give inherit, disable, new, or addresses like 192.0.2.7 separated by ','";
                return invalid("`ip4` entry", entry, problem);
            };
            if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
                let problem = "cannot belong to a jail; give the address of an interface";
                return invalid("`ip4` address", entry, problem);
            }
            if addresses.contains(&address) {
                return invalid("`ip4` address", entry, "is given twice; give it once");
            }
            addresses.push(address);
        }
        Ok(Self::Addresses(addresses))
    }
}

impl fmt::Display for Ip4Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inherit => f.write_str("inherit"),
            Self::Disable => f.write_str("disable"),
            Self::New => f.write_str("new"),
            Self::Addresses(addresses) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                f.write_str(&addresses.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_ip4_policy_reports_its_error() {
        let table = [
            ("", "`ip4` \"\" is empty"),
            ("Inherit", "entry \"Inherit\" is not"),
            ("192.0.2", "entry \"192.0.2\" is not"),
            ("192.0.2.256", "entry \"192.0.2.256\" is not"),
            ("192.0.2.7,", "entry \"\" is not"),
            ("192.0.2.7, 192.0.2.8", "entry \" 192.0.2.8\" is not"),
            ("em0|192.0.2.7", "entry \"em0|192.0.2.7\" is not"),
            ("::1", "entry \"::1\" is not"),
            ("192.0.2.7/24", "entry \"192.0.2.7/24\" is not"),
            ("192.0.2.7,192.0.2.7", "\"192.0.2.7\" is given twice"),
            ("0.0.0.0", "\"0.0.0.0\" cannot belong to a jail"),
            ("224.0.0.1", "\"224.0.0.1\" cannot belong to a jail"),
        ];
        for (value, expected) in table {
            let error = value.parse::<Ip4Policy>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for good in [
            "inherit",
            "disable",
            "new",
            "192.0.2.7",
            "192.0.2.7,127.0.0.1",
        ] {
            assert_eq!(good.parse::<Ip4Policy>().unwrap().to_string(), good);
        }
    }
}
