//! A server with TLS on loopback, and the authority of its certificate.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;

use crate::write_file;

/// A request that a server has received.
#[derive(Debug, Clone)]
pub struct Received {
    /// Request line and header fields.
    pub head: String,
    pub body: Vec<u8>,
}

impl Received {
    /// Returns the path with the query.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// Returns the value of a header field, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A response with status 200.
pub struct Response {
    pub content_type: &'static str,
    pub body: String,
}

/// A server of HTTP over TLS for 127.0.0.1 and localhost.
pub struct TlsServer {
    pub port: u16,
    /// File with the certificate of its authority, in PEM.
    pub authority: PathBuf,
    requests: Arc<Mutex<Vec<Received>>>,
}

impl TlsServer {
    /// Starts a server with a new authority, whose certificate it writes to `directory`.
    pub fn start(
        directory: &Path,
        respond: impl Fn(&Received) -> Response + Send + Sync + 'static,
    ) -> Self {
        let authority = directory.join("upstream-ca.pem");
        let config = server_config(&authority);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<Mutex<Vec<Received>>>::default();
        let (kept, respond) = (requests.clone(), Arc::new(respond));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (config, kept, respond) = (config.clone(), kept.clone(), respond.clone());
                // Errors of a disconnected client are ignored.
                std::thread::spawn(move || serve(client, config, &kept, &*respond));
            }
        });
        Self {
            port,
            authority,
            requests,
        }
    }

    /// Returns the requests so far.
    pub fn requests(&self) -> Vec<Received> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    client: TcpStream,
    config: Arc<rustls::ServerConfig>,
    requests: &Mutex<Vec<Received>>,
    respond: &dyn Fn(&Received) -> Response,
) -> io::Result<()> {
    let connection = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = rustls::StreamOwned::new(connection, client);
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let mut received = Received {
        head: String::from_utf8_lossy(&head).into_owned(),
        body: Vec::new(),
    };
    if let Some(length) = received.header("content-length") {
        received.body = vec![0; length.parse().map_err(io::Error::other)?];
        stream.read_exact(&mut received.body)?;
    } else if received.header("transfer-encoding").is_some() {
        while !received.body.ends_with(b"0\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            received.body.push(byte[0]);
        }
    }
    requests.lock().unwrap().push(received.clone());
    let Response { content_type, body } = respond(&received);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// Returns the configuration of a server with a certificate of a new authority, which is written to `file`.
fn server_config(file: &Path) -> Arc<rustls::ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let encoded = STANDARD.encode(authority.der());
    let lines: Vec<&str> = encoded
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    let pem = format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    );
    write_file(file, &pem, 0o644);
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap();
    let certificate = certificate.signed_by(&key, &issuer).unwrap();
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
