//! `/metrics` of a daemon: what it counts, as text that Prometheus reads, on the socket that the daemon has anyway.
//!
//! A page is put together when somebody asks; between questions only counters are kept.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response, header};
use prometheus_client::{
    encoding::text::encode,
    metrics::family::{Family, MetricConstructor},
    registry::Registry,
};
use tonic::body::Body;
use tower::{Layer, Service};

pub use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

const PATH: &str = "/metrics";
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One answer to `/metrics`.
pub struct Page(Registry);

impl Default for Page {
    fn default() -> Self {
        Self(Registry::with_prefix("orch"))
    }
}

impl Page {
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.0.register(name, help, gauge);
    }

    /// One value per value of a label.
    pub fn gauges<V: ToString>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (V, u64)>,
    ) {
        let family = Family::<Vec<(String, String)>, Gauge>::default();
        for (key, value) in values {
            let labels = vec![(label.to_owned(), key.to_string())];
            family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.0.register(name, help, family);
    }

    pub fn counter(&mut self, name: &str, help: &str, counter: &Counter) {
        self.0.register(name, help, counter.clone());
    }

    /// One value per combination of labels.
    pub fn counters(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<(&'static str, String)>, u64)>,
    ) {
        let family = Family::<Vec<(&'static str, String)>, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }

    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.0.register(name, help, histogram.clone());
    }

    pub fn histograms(&mut self, name: &str, help: &str, histograms: &Histograms) {
        self.0.register(name, help, histograms.family.clone());
    }

    /// The text.
    #[must_use]
    pub fn render(self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.0);
        text
    }
}

/// Histograms with the same bounds, one per value of a label.
#[derive(Clone)]
pub struct Histograms {
    label: &'static str,
    family: Family<Vec<(String, String)>, Histogram, Bounds>,
}

impl Histograms {
    #[must_use]
    pub fn new(label: &'static str, bounds: &'static [f64]) -> Self {
        Self { label, family: Family::new_with_constructor(Bounds(bounds)) }
    }

    /// The one of this value; made when it is first asked for.
    #[must_use]
    pub fn of(&self, value: &str) -> Histogram {
        self.family.get_or_create_owned(&vec![(self.label.to_owned(), value.to_owned())])
    }
}

#[derive(Clone)]
struct Bounds(&'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Answers `GET /metrics`, and leaves every other request to the daemon.
#[derive(Clone)]
pub struct MetricsLayer(Arc<dyn Fn() -> Page + Send + Sync>);

impl MetricsLayer {
    pub fn new(page: impl Fn() -> Page + Send + Sync + 'static) -> Self {
        Self(Arc::new(page))
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = MetricsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        MetricsService { layer: self.clone(), inner }
    }
}

/// A service behind [`MetricsLayer`].
#[derive(Clone)]
pub struct MetricsService<S> {
    layer: MetricsLayer,
    inner: S,
}

impl<S> Service<Request<Body>> for MetricsService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != PATH || request.method() != Method::GET {
            return Box::pin(self.inner.call(request));
        }
        let mut answer = Response::new(Body::new(Text(Some((self.layer.0)().render().into()))));
        answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
        Box::pin(ready(Ok(answer)))
    }
}

/// A body of one piece.
struct Text(Option<bytes::Bytes>);

impl http_body::Body for Text {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|text| Ok(http_body::Frame::data(text))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page::default();
        let counted = Counter::default();
        counted.inc_by(3);
        page.gauge("raft_term", "The term", 7);
        page.gauges("tasks", "Tasks", "state", [("running", 2), ("failed", 1)]);
        page.counter("image_pulls", "Pulls", &counted);
        page.histogram("fsync_seconds", "Time", &Histogram::new([0.1, 1.0]));
        let calls = Histograms::new("call", &[0.5]);
        calls.of("Get").observe(0.1);
        calls.of("Get").observe(0.9);
        page.histograms("call_seconds", "Time", &calls);
        let text = page.render();
        for line in [
            "# TYPE orch_raft_term gauge",
            "orch_raft_term 7",
            "orch_tasks{state=\"running\"} 2",
            "orch_image_pulls_total 3",
            "orch_fsync_seconds_bucket{le=\"0.1\"} 0",
            "orch_call_seconds_count{call=\"Get\"} 2",
            "orch_call_seconds_bucket{le=\"0.5\",call=\"Get\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
