//! Forwards HTTP requests, each after a check: those to the proxy itself, those in a TLS connection that it terminates, and those
//! in a tunnel without TLS.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use colibri_jail_core::{Destination, HttpScheme};
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri, client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::connect::ConnectError;
use crate::credential::{add_keys, remove_keys};
use crate::framing::{BadFraming, Head, MAX_HEADERS};
use crate::headers::{
    BadTarget, add_upgrade, check_tunneled, host_value, proxy_target, remove_hop_by_hop,
};
use crate::policy::{Refusal, RequestParts};
use crate::server::Shared;
use crate::streams::{CheckedStream, Heads};
use crate::tls;

/// Timeout for the head of a request, also of the next one on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Size of hyper's buffer for a connection, in bytes: more than the head of a request has.
const BUFFER: usize = 64 * 1024;

type Body = Either<Incoming, Full<Bytes>>;

/// A connection to a server.
struct Upstream {
    destination: Destination,
    sender: SendRequest<Incoming>,
}

/// A tunnel with HTTP requests, all for its destination.
#[derive(Clone)]
struct Tunneled {
    /// `Https` in a terminated TLS connection.
    scheme: HttpScheme,
    destination: Destination,
}

/// A client's connection with HTTP requests.
struct HttpConnection {
    shared: Arc<Shared>,
    /// The tunnel that contains the requests; without one, each request names its destination.
    tunneled: Option<Tunneled>,
    heads: Heads,
    /// The connection to the server of the last request, for the next one.
    upstream: Mutex<Option<Upstream>>,
    /// The task that copies the bytes of an upgraded connection. It ends with the connection.
    upgraded: Mutex<JoinSet<()>>,
}

/// Serves the requests of a client to the proxy itself until the connection ends.
pub(crate) async fn serve<S>(stream: S, shared: &Arc<Shared>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve_requests(stream, None, None, shared).await
}

/// Serves the requests in a terminated TLS connection for a destination.
pub(crate) async fn serve_terminated<S>(
    stream: S,
    destination: Destination,
    shared: &Arc<Shared>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tunneled = Tunneled {
        scheme: HttpScheme::Https,
        destination,
    };
    serve_requests(stream, Some(tunneled), None, shared).await
}

/// Serves the requests in a tunnel without TLS. `server` is the connection for the first of them.
pub(crate) async fn serve_plain_tunnel<S>(
    stream: S,
    destination: Destination,
    server: TcpStream,
    shared: &Arc<Shared>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let upstream = Upstream {
        destination: destination.clone(),
        sender: start_client(server).await.map_err(io::Error::other)?,
    };
    let tunneled = Tunneled {
        scheme: HttpScheme::Http,
        destination,
    };
    serve_requests(stream, Some(tunneled), Some(upstream), shared).await
}

async fn serve_requests<S>(
    stream: S,
    tunneled: Option<Tunneled>,
    upstream: Option<Upstream>,
    shared: &Arc<Shared>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stream, heads) = CheckedStream::new(stream);
    let connection = Arc::new(HttpConnection {
        shared: shared.clone(),
        tunneled,
        heads,
        upstream: Mutex::new(upstream),
        upgraded: Mutex::default(),
    });
    let service = service_fn(|request| {
        let connection = connection.clone();
        async move { Ok::<_, Infallible>(connection.respond(request).await) }
    });
    let serving = server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let served = serving.await;
    let mut upgraded = std::mem::take(&mut *lock(&connection.upgraded));
    while upgraded.join_next().await.is_some() {}
    served.map_err(io::Error::other)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a request has no response of its server.
enum Failure {
    /// The request is invalid.
    Invalid(String),
    /// The policy forbids the request.
    Refused(Destination, Refusal),
    /// The server cannot be reached or sent no valid response.
    Upstream(Destination, String),
}

impl Failure {
    fn connect(destination: &Destination, error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(refusal) => Self::Refused(destination.clone(), refusal),
            other => Self::Upstream(destination.clone(), other.to_string()),
        }
    }
}

impl HttpConnection {
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let head = self.heads.next();
        let close = match &head {
            Ok(head) => head.upgrade,
            Err(_) => true,
        };
        let forwarded = match head {
            Ok(head) => self.forward(request, head).await,
            Err(error) => Err(self.invalid_head(error)),
        };
        let mut response = match forwarded {
            Ok(response) => response,
            Err(failure) => {
                failure_response(&self.shared, failure).map(|text| Either::Right(Full::from(text)))
            }
        };
        // After a request to upgrade, the client's bytes are not checked as HTTP.
        if close && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Returns the failure for a head with invalid framing. Another protocol in a tunnel without TLS needs a rule.
    fn invalid_head(&self, error: BadFraming) -> Failure {
        match &self.tunneled {
            Some(tunneled)
                if tunneled.scheme == HttpScheme::Http && error == BadFraming::Malformed =>
            {
                Failure::Refused(tunneled.destination.clone(), Refusal::NotHttp)
            }
            _ => Failure::Invalid(error.to_string()),
        }
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        head: Head,
    ) -> Result<Response<Body>, Failure> {
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        let invalid = |error: BadTarget| Failure::Invalid(error.to_string());
        let (scheme, destination) = match &self.tunneled {
            Some(Tunneled {
                scheme,
                destination,
            }) => {
                check_tunneled(method, uri, headers, *scheme, destination).map_err(|error| {
                    match error {
                        BadTarget::Host { host, .. } => {
                            Failure::Refused(destination.clone(), Refusal::OtherHost(host))
                        }
                        other => invalid(other),
                    }
                })?;
                (*scheme, destination.clone())
            }
            None => (
                HttpScheme::Http,
                proxy_target(method, uri, headers).map_err(invalid)?,
            ),
        };
        let parts = RequestParts {
            method: method.as_str(),
            path: uri.path(),
            query: uri.query().unwrap_or_default(),
            header_names: headers.keys().map(HeaderName::as_str),
        };
        self.shared
            .policy
            .request(scheme, &destination, parts)
            .map_err(|refusal| Failure::Refused(destination.clone(), refusal))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path: Uri = path
            .parse()
            .map_err(|_| Failure::Invalid("the path is invalid; encode it".into()))?;
        let client_upgrade = head.upgrade.then(|| hyper::upgrade::on(&mut request));
        *request.uri_mut() = path;
        *request.version_mut() = hyper::Version::HTTP_11;
        let headers = request.headers_mut();
        remove_hop_by_hop(headers);
        if let Some(host) = host_value(scheme, &destination) {
            headers.insert(HOST, host);
        }
        if head.upgrade {
            add_upgrade(headers);
        }
        if scheme == HttpScheme::Https {
            add_keys(headers, &destination, &self.shared.credentials);
        }
        let mut response = self.send(scheme, &destination, request).await?;
        let server_upgrade = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => Some(hyper::upgrade::on(&mut response)),
            _ => None,
        };
        remove_hop_by_hop(response.headers_mut());
        if scheme == HttpScheme::Https {
            remove_keys(&mut response, &self.shared.credentials);
        }
        match (client_upgrade, server_upgrade) {
            (Some(client), Some(server)) => {
                add_upgrade(response.headers_mut());
                lock(&self.upgraded).spawn(async move {
                    if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
            (None, Some(_)) => {
                let problem = "the server changed the protocol without a request".to_owned();
                return Err(Failure::Upstream(destination, problem));
            }
            (_, None) => {}
        }
        Ok(response.map(Either::Left))
    }

    /// Sends a request over the open connection, or over a new one.
    async fn send(
        &self,
        scheme: HttpScheme,
        destination: &Destination,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Failure> {
        let failed =
            |error: hyper::Error| Failure::Upstream(destination.clone(), error.to_string());
        let kept = lock(&self.upstream)
            .take()
            .filter(|upstream| upstream.destination == *destination);
        if let Some(mut upstream) = kept
            && upstream.sender.ready().await.is_ok()
        {
            match upstream.sender.try_send_request(request).await {
                Ok(response) => {
                    *lock(&self.upstream) = Some(upstream);
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    // The server had closed the connection before it got the request.
                    Some(unsent) => request = unsent,
                    None => return Err(failed(error.into_error())),
                },
            }
        }
        let mut sender = self.connect(scheme, destination).await?;
        let response = sender.send_request(request).await.map_err(failed)?;
        *lock(&self.upstream) = Some(Upstream {
            destination: destination.clone(),
            sender,
        });
        Ok(response)
    }

    async fn connect(
        &self,
        scheme: HttpScheme,
        destination: &Destination,
    ) -> Result<SendRequest<Incoming>, Failure> {
        let stream = self
            .shared
            .connect(destination)
            .await
            .map_err(|error| Failure::connect(destination, error))?;
        let failed = |problem: String| Failure::Upstream(destination.clone(), problem);
        if scheme == HttpScheme::Http {
            return start_client(stream)
                .await
                .map_err(|error| failed(error.to_string()));
        }
        let Some(tls) = &self.shared.tls else {
            return Err(failed("TLS is not set up".into()));
        };
        let name =
            tls::server_name(destination.host()).map_err(|error| failed(error.to_string()))?;
        let handshake = TlsConnector::from(tls.client()).connect(name, stream);
        let stream = tokio::time::timeout(HEAD_TIMEOUT, handshake)
            .await
            .map_err(|_| failed(format!("no TLS handshake within {HEAD_TIMEOUT:?}")))?
            .map_err(|error| failed(format!("cannot verify the server: {error}")))?;
        start_client(stream)
            .await
            .map_err(|error| failed(error.to_string()))
    }
}

async fn start_client<S>(stream: S) -> hyper::Result<SendRequest<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = client::conn::http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(BUFFER * 4)
        .handshake(TokioIo::new(stream))
        .await?;
    // Ends when the sender is dropped, and with the bodies of its last exchange.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// Reports a failure and returns its response.
fn failure_response(shared: &Shared, failure: Failure) -> Response<String> {
    let (status, text) = match &failure {
        Failure::Invalid(problem) => {
            shared
                .reporter
                .notice(&format!("refused a request: {problem}"));
            (
                StatusCode::BAD_REQUEST,
                format!("refused a request: {problem}"),
            )
        }
        Failure::Refused(destination, refusal) => {
            shared.reporter.refused(destination, &refusal.to_string());
            (StatusCode::FORBIDDEN, refusal_text(destination, refusal))
        }
        Failure::Upstream(destination, problem) => {
            let text = format!("cannot connect to {destination}: {problem}");
            shared.reporter.notice(&text);
            (StatusCode::BAD_GATEWAY, text)
        }
    };
    let mut response = Response::new(format!("colibri-proxy: {text}\n"));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if status == StatusCode::FORBIDDEN {
        headers.insert("x-colibri-refused", HeaderValue::from_static("policy"));
    }
    response
}

/// Returns the message for the agent that the policy forbids a destination.
pub(crate) fn refusal_text(destination: &Destination, refusal: &Refusal) -> String {
    let rule = refusal.missing_rule(destination);
    format!(
        "policy forbids {destination}: {refusal}; do not retry, ask the user to allow it (--allow {rule})"
    )
}
