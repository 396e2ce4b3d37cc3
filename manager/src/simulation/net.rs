//! The network between simulated managers: real gRPC requests and answers, carried by hand.
//!
//! A message takes its time, so messages overtake each other; it can get lost, arrive twice, or meet a cut, which may
//! be in one direction only. A lost message is silence: only time limits notice.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::{Future, pending, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use orch_proto::{transport::TransportError, wire::raft_server::RaftServer};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep, timeout},
};
use tonic::body::Body;
use tower::{Service, service_fn, util::BoxCloneSyncService};

use super::runtime::Life;
use crate::raft::{Broken, Dial, Link, RaftService};

const SNAPSHOT_PATH: &str = "/orch.v1.Raft/Snapshot";
const FRAME_LIMIT_MS: u64 = 20;
/// A connection whose peer does not answer its pings breaks; as HTTP/2 does it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How badly messages travel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    pub(super) loss: f64,
    pub(super) duplicates: f64,
    pub(super) longest_ms: u64,
}

impl Weather {
    pub(super) const FAIR: Self = Self { loss: 0.0, duplicates: 0.0, longest_ms: 4 };
}

/// All links. Clones share them.
#[derive(Clone)]
pub(super) struct Net(Arc<Mutex<Inner>>);

struct Inner {
    random: StdRng,
    weather: Weather,
    /// From here to there nothing arrives.
    cuts: BTreeSet<(String, String)>,
    hosts: BTreeMap<String, Host>,
    carried: Carried,
}

/// What went over the network.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Carried {
    pub(super) requests: u64,
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    pub(super) snapshots: u64,
    pub(super) snapshot_frames: u64,
}

#[derive(Clone)]
struct Host {
    life: Life,
    service: RaftServer<RaftService>,
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        let inner = Inner {
            random: StdRng::seed_from_u64(seed),
            weather: Weather::FAIR,
            cuts: BTreeSet::new(),
            hosts: BTreeMap::new(),
            carried: Carried::default(),
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// A manager listens.
    pub(super) fn listen(&self, addr: &str, life: &Life, service: RaftService) {
        let host = Host { life: life.clone(), service: RaftServer::new(service) };
        self.lock().hosts.insert(addr.to_owned(), host);
    }

    pub(super) fn hang_up(&self, addr: &str) {
        self.lock().hosts.remove(addr);
    }

    /// The world is over: managers hold the network, and the network holds managers.
    pub(super) fn forget_everyone(&self) {
        self.lock().hosts.clear();
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    pub(super) fn cut(&self, from: &str, to: &str) {
        self.lock().cuts.insert((from.to_owned(), to.to_owned()));
    }

    pub(super) fn heal(&self) {
        self.lock().cuts.clear();
    }

    pub(super) fn carried(&self) -> Carried {
        self.lock().carried
    }

    /// The way from one manager to another. Never ends for a message that gets lost.
    pub(super) async fn travel(&self, from: &str, to: &str) {
        let fate = {
            let mut inner = self.lock();
            inner.carried.requests += 1;
            let Weather { loss, .. } = inner.weather;
            let is_lost = inner.is_cut(from, to) || inner.chance(loss);
            inner.carried.lost += u64::from(is_lost);
            (!is_lost).then(|| inner.delay())
        };
        let Some(delay) = fate else { return pending().await };
        sleep(delay).await;
        if self.lock().is_cut(from, to) {
            pending::<()>().await;
        }
    }

    /// How `from` reaches the others.
    pub(super) fn dial_from(&self, from: &str) -> Arc<dyn Dial> {
        Arc::new(SimulatedDial { net: self.clone(), from: from.to_owned() })
    }

    async fn call(self, from: String, to: String, request: Request<Body>) -> Result<Response<Body>, Broken> {
        let (answer, answered) = oneshot::channel();
        // What is on its way arrives also when the sender is dead by then.
        tokio::spawn(async move {
            let outcome = self.carry(&from, &to, request).await;
            // The caller may have given up.
            let _ = answer.send(outcome);
        });
        let answered = timeout(KEEP_ALIVE, answered).await.map_err(|_| broken("nobody answers"))?;
        answered.map_err(|_| broken("the connection was reset"))?
    }

    async fn carry(&self, from: &str, to: &str, request: Request<Body>) -> Result<Response<Body>, Broken> {
        let request = if request.uri().path() == SNAPSHOT_PATH {
            self.lock().carried.snapshots += 1;
            let (parts, body) = request.into_parts();
            let (net, way) = (self.clone(), (from.to_owned(), to.to_owned()));
            Request::from_parts(parts, Body::new(Trickle { net, way, body, next: None, pause: None }))
        } else {
            let (parts, body) = request.into_parts();
            let frames = collect(body).await?;
            if self.is_doubled() {
                let copy = Request::from_parts(parts.clone(), Body::new(Frames(frames.iter().map(copied).collect())));
                let (net, from, to) = (self.clone(), from.to_owned(), to.to_owned());
                tokio::spawn(async move {
                    net.travel(&from, &to).await;
                    // Whatever it says to a message that came twice, nobody hears it.
                    let _ = net.handle(&to, copy).await;
                });
            }
            Request::from_parts(parts, Body::new(Frames(frames)))
        };
        self.travel(from, to).await;
        let answer = self.handle(to, request).await;
        self.travel(to, from).await;
        answer
    }

    fn is_doubled(&self) -> bool {
        let mut inner = self.lock();
        let Weather { duplicates, .. } = inner.weather;
        let is_doubled = inner.chance(duplicates);
        inner.carried.duplicates += u64::from(is_doubled);
        is_doubled
    }

    /// The manager at `to` takes a request, if it runs.
    async fn handle(&self, to: &str, request: Request<Body>) -> Result<Response<Body>, Broken> {
        let host = self.lock().hosts.get(to).cloned();
        let Some(mut host) = host else { return Err(broken("nobody listens there")) };
        let answering = host.life.clone().spawn(async move {
            let Ok(response) = poll_ready_and_call(&mut host.service, request).await;
            let (parts, body) = response.into_parts();
            let frames = collect(body).await?;
            Ok::<_, Broken>(Response::from_parts(parts, Body::new(Frames(frames))))
        });
        answering.await.map_err(|_| broken("the connection was reset"))?
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cuts.contains(&(from.to_owned(), to.to_owned()))
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability)
    }

    /// Mostly short, sometimes as long as the weather allows.
    fn delay(&mut self) -> Duration {
        let longest_us = self.weather.longest_ms * 1000;
        let longest_us = if self.random.random_bool(0.8) { longest_us / 4 } else { longest_us };
        Duration::from_micros(self.random.random_range(0..=longest_us))
    }
}

struct SimulatedDial {
    net: Net,
    from: String,
}

impl Dial for SimulatedDial {
    fn dial(&self, addr: &str) -> BoxFuture<'static, Result<Link, TransportError>> {
        let (net, from, to) = (self.net.clone(), self.from.clone(), addr.to_owned());
        Box::pin(async move {
            net.travel(&from, &to).await;
            let listens = net.lock().hosts.contains_key(&to);
            net.travel(&to, &from).await;
            if !listens {
                let source = io::Error::from(io::ErrorKind::ConnectionRefused);
                return Err(TransportError::NoAnswer { addr: to, source });
            }
            let call = move |request| net.clone().call(from.clone(), to.clone(), request);
            Ok(BoxCloneSyncService::new(service_fn(call)))
        })
    }
}

async fn poll_ready_and_call<S: Service<Request<Body>>>(
    service: &mut S,
    request: Request<Body>,
) -> Result<S::Response, S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}

fn broken(why: &'static str) -> Broken {
    Broken(why.into())
}

/// A whole body that waits to be read.
struct Frames(VecDeque<Frame<Bytes>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

async fn collect(mut body: Body) -> Result<VecDeque<Frame<Bytes>>, Broken> {
    let mut frames = VecDeque::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        frames.push_back(frame.map_err(|status| Broken(status.into()))?);
    }
    Ok(frames)
}

fn copied(frame: &Frame<Bytes>) -> Frame<Bytes> {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => Frame::data(data.clone()),
        (None, trailers) => Frame::trailers(trailers.cloned().unwrap_or_default()),
    }
}

/// A stream that arrives frame by frame, and stops where the way is cut.
struct Trickle {
    net: Net,
    way: (String, String),
    body: Body,
    next: Option<Frame<Bytes>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Trickle {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if self.next.is_none() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let pause_ms = {
                        let mut inner = self.net.lock();
                        inner.carried.snapshot_frames += 1;
                        inner.random.random_range(0..=FRAME_LIMIT_MS)
                    };
                    self.pause = Some(Box::pin(sleep(Duration::from_millis(pause_ms))));
                    self.next = Some(frame);
                }
                end => return Poll::Ready(end),
            }
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let (from, to) = &self.way;
        if self.net.lock().is_cut(from, to) {
            // Nothing wakes it: the way is gone for this stream.
            return Poll::Pending;
        }
        Poll::Ready(self.next.take().map(Ok))
    }
}
