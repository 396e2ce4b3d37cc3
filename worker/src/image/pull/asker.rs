//! Asks a registry for something, and shows what it wants to see.
//!
//! Not by the client: it takes refusals and tokens of any length into memory, and judges by its own clock how long a token is
//! good. Here a refusal has a limit, and a token is good until the registry refuses it.

use std::time::Duration;

use oci_client::{
    errors::{OciDistributionError, OciEnvelope},
    secrets::RegistryAuth,
};
use orch_proto::wire;
use reqwest::{
    Body, Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{HeaderMap, HeaderValue, LOCATION, RANGE},
};
use tokio::{sync::Mutex, time::timeout};

use super::{PullError, patience::is_passing};
use crate::image::{
    reference::Reference,
    registry::{Endpoint, login_for, wanted_pause},
};

/// What is read of an answer that is not what was asked for.
const MAX_REFUSAL_BYTES: u64 = 64 << 10;
/// For all of that.
const LONGEST_REFUSAL: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: u32 = 10;
const LONGEST_LOGIN: Duration = Duration::from_secs(60);

/// Who asks whom, about what.
pub(in crate::image) struct Asker<'a> {
    pub endpoint: &'a Endpoint,
    pub reference: &'a Reference,
    login: Option<&'a wire::RegistryAuth>,
    /// What a token is to be good for.
    scopes: Vec<String>,
    http: Client,
    /// What the registry was shown last; held while another is fetched, so that several downloads fetch one.
    pass: Mutex<Option<RegistryAuth>>,
}

impl<'a> Asker<'a> {
    pub(super) fn new(
        endpoint: &'a Endpoint,
        reference: &'a Reference,
        login: Option<&'a wire::RegistryAuth>,
    ) -> Result<Self, PullError> {
        let scopes = vec![format!("repository:{}:pull", reference.repository)];
        Self::with_scopes(endpoint, reference, login, scopes)
    }

    /// For an upload, also of what `others`, which are repositories of the same registry, have already.
    pub(in crate::image) fn for_push(
        endpoint: &'a Endpoint,
        reference: &'a Reference,
        login: Option<&'a wire::RegistryAuth>,
        others: &[String],
    ) -> Result<Self, PullError> {
        let own = format!("repository:{}:pull,push", reference.repository);
        let others = others.iter().map(|other| format!("repository:{other}:pull"));
        Self::with_scopes(endpoint, reference, login, [own].into_iter().chain(others).collect())
    }

    fn with_scopes(
        endpoint: &'a Endpoint,
        reference: &'a Reference,
        login: Option<&'a wire::RegistryAuth>,
        scopes: Vec<String>,
    ) -> Result<Self, PullError> {
        let login = login_for(login, endpoint, reference);
        Ok(Self { endpoint, reference, login, scopes, http: endpoint.http_of_one_step()?, pass: Mutex::default() })
    }

    pub(in crate::image) fn http(&self) -> &Client {
        &self.http
    }

    /// Finds out what to show, and with it whether there is a way to the registry.
    pub(in crate::image) async fn greet(&self) -> Result<(), PullError> {
        self.pass(None).await.map(drop)
    }

    /// A blob from this byte on, or all of it: the answer's status says.
    pub(super) async fn blob(&self, digest: &str, from: u64) -> Result<Response, PullError> {
        let mut headers = HeaderMap::new();
        if from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
        {
            headers.insert(RANGE, range);
        }
        let answer = self.ask(Method::GET, &format!("blobs/{digest}"), headers).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            _ => Err(self.endpoint.error(self.refusal(answer).await?)),
        }
    }

    pub(super) async fn ask(&self, method: Method, path: &str, headers: HeaderMap) -> Result<Response, PullError> {
        self.send(&self.http, method, self.url(path)?, headers, Body::default).await
    }

    /// Of something in the repository.
    pub(in crate::image) fn url(&self, path: &str) -> Result<Url, PullError> {
        let text = format!("{}{}/{path}", self.endpoint.base(), self.reference.repository);
        Url::parse(&text).map_err(|error| self.endpoint.failed(format!("{text} is no address: {error}")))
    }

    /// Asks at any address, and where that sends one on to; only the registry itself is shown who asks.
    ///
    /// Not by the client, whose errors name the first address whichever of them they are about.
    pub(in crate::image) async fn send(
        &self,
        http: &Client,
        method: Method,
        mut url: Url,
        headers: HeaderMap,
        body: impl Fn() -> Body,
    ) -> Result<Response, PullError> {
        for _ in 0..=MAX_REDIRECTS {
            let question = || http.request(method.clone(), url.clone()).headers(headers.clone()).body(body());
            let answer = match self.endpoint.is_own(&url) {
                true => self.send_with_pass(question).await?,
                false => self.send_one(question()).await?,
            };
            let onward = answer.headers().get(LOCATION).filter(|_| sends_on(answer.status()));
            let onward = onward.and_then(|onward| answer.url().join(onward.to_str().ok()?).ok());
            let Some(onward) = onward else { return Ok(answer) };
            url = onward;
        }
        Err(self.endpoint.failed(format!("it sends one on and on, to {url} at last")))
    }

    async fn send_with_pass(&self, question: impl Fn() -> RequestBuilder) -> Result<Response, PullError> {
        let send = async |pass: &RegistryAuth| {
            let question = match pass {
                RegistryAuth::Bearer(token) => question().bearer_auth(token),
                RegistryAuth::Basic(user, password) => question().basic_auth(user, Some(password)),
                RegistryAuth::Anonymous => question(),
            };
            self.send_one(question).await
        };
        let (pass, is_new) = self.pass(None).await?;
        let answer = send(&pass).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || is_new || !matches!(pass, RegistryAuth::Bearer(_)) {
            return Ok(answer);
        }
        // A token's time may be over in the middle of a transfer.
        let (pass, _) = self.pass(Some(&pass)).await?;
        send(&pass).await
    }

    async fn send_one(&self, question: RequestBuilder) -> Result<Response, PullError> {
        question.send().await.map_err(|error| self.endpoint.error(error.into()))
    }

    /// What to show, and whether it is new; another one than what was `refused`.
    async fn pass(&self, refused: Option<&RegistryAuth>) -> Result<(RegistryAuth, bool), PullError> {
        let mut kept = self.pass.lock().await;
        if let Some(pass) = kept.as_ref().filter(|pass| Some(*pass) != refused) {
            return Ok((pass.clone(), false));
        }
        let asked = self.endpoint.pass(self.login, &self.scopes);
        let late = |_| Err(self.endpoint.failed(format!("the login takes longer than {} s", LONGEST_LOGIN.as_secs())));
        let pass = timeout(LONGEST_LOGIN, asked).await.unwrap_or_else(late)?;
        *kept = Some(pass.clone());
        Ok((pass, true))
    }

    /// What an answer says that is not what was asked for; an error where it may be another one soon, or breaks off.
    pub(in crate::image) async fn refusal(&self, mut answer: Response) -> Result<OciDistributionError, PullError> {
        let (status, url, wanted) = (answer.status(), answer.url().to_string(), wanted_pause(&answer));
        // Of one that takes its time over it, the status says enough.
        let body =
            timeout(LONGEST_REFUSAL, self.read(&mut answer, MAX_REFUSAL_BYTES)).await.unwrap_or(Ok(Vec::new()))?;
        let message = String::from_utf8_lossy(&body).into_owned();
        let code = status.as_u16();
        if is_passing(code) {
            return Err(self.endpoint.busy(code, &message, wanted));
        }
        Ok(match (status, serde_json::from_slice::<OciEnvelope>(&body)) {
            (StatusCode::UNAUTHORIZED, _) => OciDistributionError::UnauthorizedError { url },
            (status, Ok(envelope)) if status.is_client_error() => OciDistributionError::RegistryError { envelope, url },
            _ => OciDistributionError::ServerError { code, url, message },
        })
    }

    /// At most one piece more than the limit.
    pub(super) async fn read(&self, answer: &mut Response, limit: u64) -> Result<Vec<u8>, PullError> {
        let mut text = Vec::new();
        while text.len() as u64 <= limit
            && let Some(piece) = answer.chunk().await.map_err(|error| self.endpoint.error(error.into()))?
        {
            text.extend_from_slice(&piece);
        }
        Ok(text)
    }
}

/// To where the same may be asked.
fn sends_on(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 307 | 308)
}
