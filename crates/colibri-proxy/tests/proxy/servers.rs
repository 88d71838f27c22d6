//! Servers of the tests.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::bridge::read_head;

/// A server that answers each HTTP request by its bytes, upgrades to an echo, and echoes other protocols.
pub(crate) struct Server {
    pub(crate) port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(serve::<TcpStream>)
    }

    /// Starts a server with TLS.
    pub(crate) fn start_tls(authority: &TestAuthority) -> Self {
        let config = authority.server_config();
        Self::start_with(move |stream, requests| {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            serve(rustls::StreamOwned::new(connection, stream), requests);
        })
    }

    /// Starts a server with TLS that answers the first request of each connection by these bytes.
    pub(crate) fn start_tls_with_answer(authority: &TestAuthority, answer: String) -> Self {
        let config = authority.server_config();
        Self::start_with(move |stream, requests| {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let request = read_head(&mut stream);
            requests.lock().unwrap().push(request);
            stream.write_all(answer.as_bytes()).unwrap();
        })
    }

    fn start_with(
        handler: impl Fn(TcpStream, Arc<Mutex<Vec<String>>>) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let handler = Arc::new(handler);
        let kept = requests.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (handler, requests) = (handler.clone(), kept.clone());
                std::thread::spawn(move || handler(client, requests));
            }
        });
        Self { port, requests }
    }

    /// Returns the requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve<S: Read + Write>(mut stream: S, requests: Arc<Mutex<Vec<String>>>) {
    let mut first = [0; 1];
    while stream.read(&mut first).is_ok_and(|count| count == 1) {
        if !first[0].is_ascii_uppercase() {
            return echo(&mut stream, &first);
        }
        let mut request = String::from_utf8_lossy(&first).into_owned() + &read_head(&mut stream);
        let lower = request.to_ascii_lowercase();
        if lower.contains("upgrade: websocket") && !request.contains("/declined") {
            requests.lock().unwrap().push(request);
            let response = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
            stream.write_all(response.as_bytes()).unwrap();
            return echo(&mut stream, b"");
        }
        if let Some(length) = lower.split("content-length: ").nth(1) {
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            request += &String::from_utf8_lossy(&body);
        } else if lower.contains("transfer-encoding: chunked") {
            let mut byte = [0];
            while !request.ends_with("\r\n0\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.push(char::from(byte[0]));
            }
        }
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\r\n{request}",
            request.len()
        );
        requests.lock().unwrap().push(request);
        if stream.write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}

fn echo(stream: &mut (impl Read + Write), first: &[u8]) {
    let _ = stream.write_all(first);
    let mut chunk = [0; 4096];
    while let Ok(count) = stream.read(&mut chunk)
        && count > 0
        && stream.write_all(&chunk[..count]).is_ok()
    {}
}

/// An authority for the names of this machine.
pub(crate) struct TestAuthority {
    _directory: tempfile::TempDir,
    pub(crate) file: PathBuf,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl TestAuthority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        use base64::Engine;
        let encoded = base64::engine::general_purpose::STANDARD.encode(&certificate);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n");
        std::fs::write(&file, pem).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        Self {
            _directory: directory,
            file,
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    fn server_config(&self) -> Arc<rustls::ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), hostname()];
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Arc::new(config)
    }

    /// Starts a TLS handshake for `name` that trusts this authority.
    pub(crate) fn client(
        &self,
        name: &str,
        stream: TcpStream,
    ) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        tls_client(vec![self.certificate.clone()], name, stream)
    }
}

/// Returns a TLS client that trusts these certificates.
pub(crate) fn tls_client(
    trusted: Vec<CertificateDer<'static>>,
    name: &str,
    stream: TcpStream,
) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    assert!(!trusted.is_empty());
    roots.add_parsable_certificates(trusted);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    rustls::StreamOwned::new(client, stream)
}

/// Returns the certificates of a file in PEM.
pub(crate) fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_certs_from_paths(Some(file), None).certs
}

/// Returns the name of this machine.
pub(crate) fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_ascii_lowercase()
}

/// Returns the name of this machine if it resolves to 127.0.0.1 without a name server.
pub(crate) fn loopback_hostname() -> Option<String> {
    use std::net::ToSocketAddrs;
    let name = hostname();
    let addresses: Vec<_> = (name.as_str(), 0).to_socket_addrs().ok()?.collect();
    let found = addresses
        .iter()
        .any(|address| address.ip() == std::net::Ipv4Addr::LOCALHOST);
    if !found || name == "localhost" {
        eprintln!("skipped: the name of this machine does not resolve to 127.0.0.1");
        return None;
    }
    Some(name)
}
