//! A manager that cannot go on (a full or read-only disk, a damaged log) says so on its local socket for a while, and
//! then ends: the supervisor starts it again, and with the cause gone it serves again.
//!
//! It answers nothing else meanwhile: what it has in memory may be behind what it acknowledged, or ahead of its disk.

use std::{
    convert::Infallible,
    future::{self, Future},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use orch_proto::{paths::Paths, transport};
use tokio::time::sleep;
use tonic::{Code, body::Body, server::NamedService, transport::Server};
use tower::Service;

use crate::api::status;

/// Long enough for people to be told, and for the supervisor not to spin.
const PAUSE: Duration = Duration::from_secs(5);
const SOCKET_MODE: u32 = 0o660;
/// Names the answer for programs, `orch info` among them.
const STABLE_CODE: &str = "failed";

/// Answers every local call with `error`, until it is time to try again or `stopping` completes.
pub(crate) async fn complain(paths: &Paths, error: &anyhow::Error, stopping: impl Future<Output = ()>) {
    let text = format!("the manager of this node does not serve: {error:#}. It tries again by itself");
    tracing::error!("{text}");
    let over = async {
        tokio::select! {
            () = stopping => {}
            () = sleep(PAUSE) => {}
        }
    };
    let answer = Complaint(text.into());
    let serve = async {
        // Without a socket the log has it.
        let Ok(socket) = transport::unix_incoming(&paths.manager_sock(), SOCKET_MODE) else {
            return future::pending().await;
        };
        let served = Server::builder().add_service(answer).serve_with_incoming(socket).await;
        if let Err(error) = served {
            tracing::debug!(%error, "cannot say so on the local socket");
        }
    };
    tokio::select! {
        () = over => {}
        () = serve => sleep(PAUSE).await,
    }
}

/// The one answer.
#[derive(Clone)]
struct Complaint(Arc<str>);

impl NamedService for Complaint {
    const NAME: &'static str = "orch.v1.Control";
}

impl Service<Request<Body>> for Complaint {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let refused = status::with_code(Code::FailedPrecondition, STABLE_CODE, &*self.0);
        future::ready(Ok(refused.into_http()))
    }
}
