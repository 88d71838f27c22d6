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
        match text {
            "" => return Err(JailError::Ip4Empty),
            "inherit" => return Ok(Self::Inherit),
            "disable" => return Ok(Self::Disable),
            "new" => return Ok(Self::New),
            _ => {}
        }
        let mut addresses = Vec::new();
        for entry in text.split(',') {
            let address: Ipv4Addr = entry
                .parse()
                .map_err(|_| JailError::Ip4Malformed(entry.to_owned()))?;
            if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
                return Err(JailError::Ip4Unusable(address));
            }
            if addresses.contains(&address) {
                return Err(JailError::Ip4Duplicate(address));
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
            ("", JailError::Ip4Empty),
            ("Inherit", JailError::Ip4Malformed("Inherit".into())),
            ("192.0.2", JailError::Ip4Malformed("192.0.2".into())),
            ("192.0.2.256", JailError::Ip4Malformed("192.0.2.256".into())),
            ("192.0.2.7,", JailError::Ip4Malformed(String::new())),
            (
                "192.0.2.7, 192.0.2.8",
                JailError::Ip4Malformed(" 192.0.2.8".into()),
            ),
            (
                "em0|192.0.2.7",
                JailError::Ip4Malformed("em0|192.0.2.7".into()),
            ),
            ("::1", JailError::Ip4Malformed("::1".into())),
            (
                "192.0.2.7/24",
                JailError::Ip4Malformed("192.0.2.7/24".into()),
            ),
            (
                "192.0.2.7,192.0.2.7",
                JailError::Ip4Duplicate(Ipv4Addr::new(192, 0, 2, 7)),
            ),
            ("0.0.0.0", JailError::Ip4Unusable(Ipv4Addr::UNSPECIFIED)),
            (
                "224.0.0.1",
                JailError::Ip4Unusable(Ipv4Addr::new(224, 0, 0, 1)),
            ),
        ];
        for (value, expected) in table {
            assert_eq!(value.parse::<Ip4Policy>(), Err(expected), "{value:?}");
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
