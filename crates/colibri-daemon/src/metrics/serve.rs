//! Serves `GET /metrics` over HTTP/1.1 on a Unix socket or a loopback address.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use colibri_config::MetricsAddress;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::prometheus_text;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{LiveSource, Metrics};
use crate::errors::StartError;
use crate::socket::{ListeningSocket, accept_all};

/// Maximum number of concurrent connections; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 16;
/// Timeout for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a request and its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of the head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The metrics and the listening socket for them. Dropping it closes the socket.
pub(crate) struct MetricsServer {
    pub(crate) metrics: Arc<Metrics>,
    listener: MetricsListener,
}

enum MetricsListener {
    Unix(ListeningSocket),
    Tcp(TcpListener),
}

impl MetricsServer {
    /// Listens at an address.
    ///
    /// # Errors
    /// The address is in use, or the system refuses.
    pub(crate) async fn open(address: &MetricsAddress) -> Result<Self, StartError> {
        let listener = match address {
            MetricsAddress::Unix(path) => {
                let listening = ListeningSocket::open(path, None).await;
                MetricsListener::Unix(
                    listening.map_err(|error| format!("cannot serve metrics: {error}"))?,
                )
            }
            MetricsAddress::Loopback(address) => {
                let failed = |error: io::Error| {
                    format!(
                        "cannot serve metrics at {address}: {error}; pass another port with --metrics"
                    )
                };
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                tracing::info!(%address, "metrics");
                MetricsListener::Tcp(listener)
            }
        };
        let metrics = Arc::new(Metrics::new());
        Ok(Self { metrics, listener })
    }

    /// Serves requests forever. `source` returns the values that are read at each collection.
    pub(crate) async fn serve(self, source: LiveSource) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        match &self.listener {
            MetricsListener::Unix(ListeningSocket { listener, .. }) => {
                let handle = |stream| answer(stream, self.metrics.clone(), source.clone());
                accept_all(&slots, || listener.accept(), handle).await;
            }
            MetricsListener::Tcp(listener) => {
                let handle = |stream| answer(stream, self.metrics.clone(), source.clone());
                accept_all(&slots, || listener.accept(), handle).await;
            }
        }
    }
}

/// Answers one request and closes the connection.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    metrics: Arc<Metrics>,
    source: LiveSource,
) {
    let respond = service_fn(|request| {
        let response = respond(&request, || metrics.text(&source()));
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), respond);
    match tokio::time::timeout(REQUEST_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "request for metrics failed"),
        Err(_) => tracing::debug!("request for metrics timed out"),
    }
}

fn respond<B>(
    request: &Request<B>,
    collect: impl FnOnce() -> Result<String, fmt::Error>,
) -> Response<String> {
    let (status, text) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => match collect() {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("cannot encode metrics: {error}\n"),
            ),
        },
        ("/metrics", _) => (
            StatusCode::METHOD_NOT_ALLOWED,
            "method not allowed; use GET /metrics\n".to_owned(),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            "not found; metrics are at /metrics\n".to_owned(),
        ),
    };
    let kind = match status {
        StatusCode::OK => prometheus_text::CONTENT_TYPE,
        _ => "text/plain; charset=utf-8",
    };
    let mut response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response = response.header(ALLOW, "GET, HEAD");
    }
    response.body(text).unwrap_or_default()
}
