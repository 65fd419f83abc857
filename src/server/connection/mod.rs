//! One client connection from accept to FIN: requests handed to the router, clocks watched, the end made clean.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::stream::{Clock, Clocks, Shared, Tracked};
use super::wire::{ClientStream, Wire};

pub use super::stream::AbortHandle;

/// What a connection may use, in time and memory.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// How long it may be in each phase.
    pub clocks: Clocks,
    /// How many bytes a request's head may have, request line included. hyper also buffers no more than this of a
    /// response before it asks the body again.
    pub head_bytes_max: usize,
    /// How long, after our FIN, the client may take to close its side.
    pub linger: Duration,
    /// How much of what the client still sends is read meanwhile.
    pub linger_bytes_max: u64,
}

/// Both ends of the connection that a request came on; an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The client, or the proxy before it.
    pub peer: SocketAddr,
    /// The address that the client connected to.
    pub local: SocketAddr,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// After a complete response, or before any request.
    Complete,
    /// With a response that its body ended short.
    Aborted,
    /// The client left, broke the connection, or sent what is not HTTP/1.
    Failed,
    /// A clock ran out.
    Expired(Clock),
}

/// Serves one connection until it ends. Nothing further is taken on it once `draining` is cancelled.
pub async fn serve<T>(
    stream: T,
    info: ConnectionInfo,
    app: Router,
    limits: ConnectionLimits,
    draining: CancellationToken,
) -> End
where
    T: Wire,
{
    // hyper passes slices on as they are only to a stream that takes several at once.
    let shared = Shared::new(stream.sends_files() && stream.is_write_vectored());
    let stream = ClientStream::new(stream, shared.clone());
    let requests = Requests { app, info, shared: shared.clone() };
    // No half_close: a client that closes its side has left, and is noticed even while a response waits for upstream.
    // No header_read_timeout: it would count the idle time between requests as part of the next head.
    let mut connection = http1::Builder::new()
        .half_close(false)
        .header_read_timeout(None)
        .max_header_size(limits.head_bytes_max)
        .max_buf_size(limits.head_bytes_max)
        .serve_connection(TokioIo::new(stream), requests);
    let end = drive(&mut connection, &shared, &limits.clocks, draining).await;
    // This drops the response body and the handler, if they are still there.
    let stream = connection.into_parts().io.into_inner().into_inner();
    shared.outbox().clear();
    if end != End::Expired(Clock::Stall) && !shared.client_gone() {
        linger(stream, &limits).await;
    }
    end
}

type Connection<T> = http1::Connection<TokioIo<ClientStream<T>>, Requests>;

async fn drive<T>(connection: &mut Connection<T>, shared: &Shared, clocks: &Clocks, draining: CancellationToken) -> End
where
    T: Wire,
{
    let mut draining = pin!(draining.cancelled_owned());
    let mut told = false;
    let mut alarm = pin!(tokio::time::sleep(clocks.first_byte));
    poll_fn(|cx| {
        shared.register(cx.waker());
        shared.turn_began();
        let mut result = Pin::new(&mut *connection).poll(cx);
        if result.is_pending() && !told && draining.as_mut().poll(cx).is_ready() {
            told = true;
            Pin::new(&mut *connection).graceful_shutdown();
            result = Pin::new(&mut *connection).poll(cx);
        }
        if let Poll::Ready(result) = result {
            return Poll::Ready(result.map_or(End::Failed, |()| End::Complete));
        }
        if shared.may_end_short() {
            return Poll::Ready(End::Aborted);
        }
        poll_clocks(cx, shared, clocks, alarm.as_mut()).map(End::Expired)
    })
    .await
}

/// Ready when a clock has run out. The alarm is set earlier when it must be, later only when it rings: most phases end
/// long before.
fn poll_clocks(
    cx: &mut Context<'_>,
    shared: &Shared,
    clocks: &Clocks,
    mut alarm: Pin<&mut tokio::time::Sleep>,
) -> Poll<Clock> {
    let Some((deadline, clock)) = shared.deadline(clocks) else {
        return Poll::Pending;
    };
    if alarm.deadline() > deadline {
        alarm.as_mut().reset(deadline);
    }
    ready!(alarm.as_mut().poll(cx));
    if alarm.deadline() < deadline {
        alarm.as_mut().reset(deadline);
        ready!(alarm.as_mut().poll(cx));
    }
    Poll::Ready(clock)
}

/// Sends FIN and reads on until the client closes too. A socket closed over unread input sends RST, which can destroy
/// what the client has not read yet.
async fn linger<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T, limits: &ConnectionLimits) {
    let drain = async {
        // Already done, or the connection is broken: then reading ends at once.
        let _ = stream.shutdown().await;
        let mut scrap = vec![0; 8 << 10];
        let mut room = limits.linger_bytes_max;
        while room > 0 {
            match stream.read(&mut scrap).await {
                Ok(n) if n > 0 => room = room.saturating_sub(n as u64),
                Ok(_) | Err(_) => return,
            }
        }
    };
    // Out of time is as good an end as any: the client had its chance.
    let _ = tokio::time::timeout(limits.linger, drain).await;
}

/// Hands requests to the router, with what they may want to know about their connection.
struct Requests {
    app: Router,
    info: ConnectionInfo,
    shared: Arc<Shared>,
}

// === impl Requests ===

impl hyper::service::Service<Request<Incoming>> for Requests {
    type Response = Response<Tracked>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let shared = self.shared.clone();
        let abort = AbortHandle::new(shared.clone(), shared.request_began());
        let version = request.version();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.info);
        request.extensions_mut().insert(abort.clone());
        // A router is always ready.
        let answer = self.app.clone().call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            let mut promised = length(&response);
            if version < Version::HTTP_11 && promised.is_none() {
                // HTTP/1.0 would take the end of the connection for the end of the body, so that a body ended short
                // looked complete.
                response = (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "this response needs HTTP/1.1\n").into_response();
                promised = length(&response);
            }
            shared.response_began();
            Ok(response.map(|body| Tracked::new(body, promised, abort)))
        })
    }
}

fn length(response: &Response<Body>) -> Option<u64> {
    match response.headers().get(header::CONTENT_LENGTH) {
        Some(value) => value.to_str().ok()?.parse().ok(),
        None => response.body().size_hint().exact(),
    }
}

#[cfg(test)]
mod tests;
