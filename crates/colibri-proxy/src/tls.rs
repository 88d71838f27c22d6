//! TLS: the authority of an agent, the certificates that it issues, and connections to servers.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use colibri_jail_core::Host;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Maximum number of certificates that are kept.
const MAX_CERTIFICATES: usize = 256;
/// Maximum length of the first message of a TLS client, in bytes.
const MAX_CLIENT_HELLO: usize = 64 * 1024;
/// Days before now at which certificates become valid, for clocks that differ.
const VALID_BEFORE_DAYS: i64 = 2;
/// Validity of the authority and its certificates, in days. They end with the agent.
const VALID_DAYS: i64 = 390;
/// Content type of a handshake record of TLS (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 0x16;
/// The only protocol inside of TLS.
const HTTP_1_1: &[u8] = b"http/1.1";
/// The fatal alert `access_denied` as a record (RFC 8446, section 6).
pub(crate) const ACCESS_DENIED: &[u8] = &[0x15, 3, 3, 0, 2, 2, 49];

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot create a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot use a certificate: {0}")]
    Tls(#[from] rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Sets the validity of a certificate from now.
fn set_validity(params: &mut CertificateParams) {
    let today = jiff::tz::Offset::UTC
        .to_datetime(jiff::Timestamp::now())
        .date();
    let day = |days: i64| {
        let date = today.saturating_add(jiff::Span::new().days(days));
        let part = |number: i8| u8::try_from(number).unwrap_or(1);
        rcgen::date_time_ymd(date.year().into(), part(date.month()), part(date.day()))
    };
    params.not_before = day(-VALID_BEFORE_DAYS);
    params.not_after = day(VALID_DAYS);
}

/// Returns the parameters of the authority's certificate; the issuer has the same in each process.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Colibri authority of one agent");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A certificate authority for one agent.
pub(crate) struct Authority {
    /// The private key in PKCS #8.
    pub(crate) key: Vec<u8>,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Authority {
    /// Creates an authority.
    pub(crate) fn generate() -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = authority_params();
        set_validity(&mut params);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self {
            key: key.serialize_der(),
            certificate,
        })
    }
}

/// Encodes a certificate in PEM (RFC 7468).
pub(crate) fn to_pem(certificate: &[u8]) -> String {
    let encoded = STANDARD.encode(certificate);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Returns the root certificates of the system, and those of a file that only root or this user can change. A process with the
/// variable `SSL_CERT_FILE` would get that file in place of the system's certificates; `serve` has no such variable.
pub(crate) fn root_certificates(file: Option<&Path>) -> Vec<CertificateDer<'static>> {
    let mut certificates = rustls_native_certs::load_native_certs().certs;
    if let Some(file) = file.filter(|file| is_trusted(file)) {
        certificates.extend(rustls_native_certs::load_certs_from_paths(Some(file), None).certs);
    }
    certificates.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
    certificates.dedup();
    certificates
}

fn is_trusted(file: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let user = rustix::process::geteuid().as_raw();
    std::fs::metadata(file).is_ok_and(|metadata| {
        [0, user].contains(&metadata.uid()) && metadata.mode() & 0o022 == 0 && metadata.is_file()
    })
}

/// Issues certificates for hosts, and connects to servers.
pub(crate) struct TlsContext {
    issuer: Issuer<'static, KeyPair>,
    leaf_key: KeyPair,
    signing_key: Arc<dyn SigningKey>,
    provider: Arc<CryptoProvider>,
    configs: Mutex<HashMap<Host, Arc<ServerConfig>>>,
    client: Arc<ClientConfig>,
}

impl TlsContext {
    /// Creates a context from the key of the authority and the certificates that servers are verified with.
    pub(crate) fn new(
        authority_key: &[u8],
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsError> {
        let provider = provider();
        let key = KeyPair::try_from(authority_key)?;
        let leaf_key = KeyPair::generate()?;
        let leaf_der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let signing_key = rustls::crypto::ring::sign::any_supported_type(&leaf_der)?;
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots);
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        client.alpn_protocols = vec![HTTP_1_1.to_vec()];
        Ok(Self {
            issuer: Issuer::new(authority_params(), key),
            leaf_key,
            signing_key,
            provider,
            configs: Mutex::default(),
            client: Arc::new(client),
        })
    }

    /// Returns the configuration of clients, which verifies servers.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// Returns the configuration of a server with a certificate for this host.
    pub(crate) fn server(&self, host: &Host) -> Result<Arc<ServerConfig>, TlsError> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(host) {
            return Ok(config.clone());
        }
        let mut params = CertificateParams::default();
        set_validity(&mut params);
        params
            .distinguished_name
            .push(DnType::CommonName, "Colibri");
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Address(address) => SanType::IpAddress(*address),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.leaf_key, &self.issuer)?;
        let key = CertifiedKey::new(vec![certificate.der().clone()], self.signing_key.clone());
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(OneCertificate(Arc::new(key))));
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        let config = Arc::new(config);
        if configs.len() >= MAX_CERTIFICATES {
            configs.clear();
        }
        configs.insert(host.clone(), config.clone());
        Ok(config)
    }
}

/// The certificate of one host, for clients with every name: the name was checked before.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Returns the name of a host in TLS.
pub(crate) fn server_name(host: &Host) -> io::Result<ServerName<'static>> {
    match host {
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(io::Error::other),
        Host::Address(address) => Ok(ServerName::IpAddress(IpAddr::into(*address))),
    }
}

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FirstBytes {
    /// More bytes are necessary.
    Incomplete,
    /// A ClientHello of TLS, with the name of the host (SNI) in lower case.
    Tls { name: Option<String> },
    /// A record of TLS without a valid ClientHello.
    InvalidTls,
    /// Another protocol.
    Other,
}

/// Examines the first bytes of a client in a tunnel.
pub(crate) fn first_bytes(bytes: &[u8]) -> FirstBytes {
    match bytes.first() {
        None => return FirstBytes::Incomplete,
        Some(&HANDSHAKE) => {}
        Some(_) => return FirstBytes::Other,
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return FirstBytes::InvalidTls;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted
                    .client_hello()
                    .server_name()
                    .map(str::to_ascii_lowercase);
                return FirstBytes::Tls { name };
            }
            Ok(None) => {}
            Err(_) => return FirstBytes::InvalidTls,
        }
    }
    match bytes.len() {
        length if length > MAX_CLIENT_HELLO => FirstBytes::InvalidTls,
        _ => FirstBytes::Incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_hello(name: ServerName<'static>) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn name_of_a_client_hello_is_found() {
        let bytes = client_hello("A.Example".try_into().unwrap());
        for length in 0..bytes.len() {
            assert_eq!(
                first_bytes(&bytes[..length]),
                FirstBytes::Incomplete,
                "{length}"
            );
        }
        let name = Some("a.example".to_owned());
        assert_eq!(first_bytes(&bytes), FirstBytes::Tls { name });
        let address = IpAddr::from([192, 0, 2, 1]);
        let bytes = client_hello(ServerName::IpAddress(address.into()));
        assert_eq!(first_bytes(&bytes), FirstBytes::Tls { name: None });
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1"[..], FirstBytes::Other),
            (b"SSH-2.0", FirstBytes::Other),
            (b"\x16xxxxxxxxxxxxx", FirstBytes::InvalidTls),
            (b"\x16\x03\x01\x00\x05hello", FirstBytes::InvalidTls),
        ] {
            assert_eq!(first_bytes(bytes), expected, "{bytes:?}");
        }
    }

    /// Returns whether a client that trusts only the authority completes a handshake for `name`.
    fn accepts(context: &TlsContext, authority: &Authority, host: &str, name: &str) -> bool {
        let config = context.server(&host.parse().unwrap()).unwrap();
        let mut server = rustls::ServerConnection::new(config).unwrap();
        let client = TlsContext::new(&authority.key, vec![authority.certificate.clone()]).unwrap();
        let name = server_name(&name.parse().unwrap()).unwrap();
        let mut client = rustls::ClientConnection::new(client.client(), name).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut &bytes[..]).unwrap();
            if server.process_new_packets().is_err() {
                return false;
            }
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            if client.process_new_packets().is_err() {
                return false;
            }
        }
        true
    }

    #[test]
    fn issued_certificates_are_valid_for_their_host() {
        let authority = Authority::generate().unwrap();
        let context = TlsContext::new(&authority.key, Vec::new()).unwrap();
        assert!(accepts(&context, &authority, "a.example", "a.example"));
        assert!(accepts(&context, &authority, "127.0.0.1", "127.0.0.1"));
        assert!(accepts(
            &context,
            &authority,
            "[2001:db8::1]",
            "[2001:db8::1]"
        ));
        assert!(!accepts(&context, &authority, "a.example", "b.example"));
        let other = Authority::generate().unwrap();
        assert!(!accepts(&context, &other, "a.example", "a.example"));
        for n in 0..2 * MAX_CERTIFICATES {
            context
                .server(&format!("h{n}.example").parse().unwrap())
                .unwrap();
        }
        assert!(context.configs.lock().unwrap().len() <= MAX_CERTIFICATES);
    }

    #[test]
    fn pem_has_lines_of_64_characters() {
        let pem = to_pem(&[0; 100]);
        let lines: Vec<&str> = pem.lines().collect();
        assert_eq!(lines.first(), Some(&"-----BEGIN CERTIFICATE-----"));
        assert_eq!(lines.last(), Some(&"-----END CERTIFICATE-----"));
        assert!(lines[1].len() == 64 && lines[2].len() == 64 && lines[3].len() == 8);
    }
}
