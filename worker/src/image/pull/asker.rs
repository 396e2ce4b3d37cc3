//! Asks a registry for something, and shows what it wants to see.
//!
//! Not by the client: it takes refusals and tokens of any length into memory, and judges by its own clock how long a token is
//! good. Here a refusal has a limit, and a token is good until the registry refuses it.

use std::time::Duration;

use oci_client::{
    RegistryOperation,
    errors::{OciDistributionError, OciEnvelope},
    secrets::RegistryAuth,
};
use orch_proto::wire;
use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, HeaderValue, RANGE},
};
use tokio::{sync::Mutex, time::timeout};

use super::{PullError, patience::is_passing};
use crate::image::{
    reference::Reference,
    registry::{Endpoint, login_for, wanted_pause},
};

/// What is read of an answer that is not what was asked for.
const MAX_REFUSAL_BYTES: u64 = 64 << 10;
const LONGEST_LOGIN: Duration = Duration::from_secs(60);

/// Who asks whom, about what.
pub(super) struct Asker<'a> {
    pub endpoint: &'a Endpoint,
    pub reference: &'a Reference,
    login: Option<&'a wire::RegistryAuth>,
    http: reqwest::Client,
    /// What the registry was shown last; held while another is fetched, so that several downloads fetch one.
    pass: Mutex<Option<RegistryAuth>>,
}

impl<'a> Asker<'a> {
    pub(super) fn new(
        endpoint: &'a Endpoint,
        reference: &'a Reference,
        login: Option<&'a wire::RegistryAuth>,
    ) -> Result<Self, PullError> {
        let login = login_for(login, endpoint, reference);
        Ok(Self { endpoint, reference, login, http: endpoint.http()?, pass: Mutex::default() })
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
        let url = format!("{}{}/{path}", self.endpoint.base(), self.reference.repository);
        let send = async |pass: &RegistryAuth| {
            let request = self.http.request(method.clone(), &url).headers(headers.clone());
            let request = match pass {
                RegistryAuth::Bearer(token) => request.bearer_auth(token),
                RegistryAuth::Basic(user, password) => request.basic_auth(user, Some(password)),
                RegistryAuth::Anonymous => request,
            };
            request.send().await.map_err(|error| self.endpoint.error(error.into()))
        };
        let (pass, is_new) = self.pass(None).await?;
        let answer = send(&pass).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || is_new || !matches!(pass, RegistryAuth::Bearer(_)) {
            return Ok(answer);
        }
        // A token's time may be over in the middle of a pull.
        let (pass, _) = self.pass(Some(&pass)).await?;
        send(&pass).await
    }

    /// What to show, and whether it is new; another one than what was `refused`.
    async fn pass(&self, refused: Option<&RegistryAuth>) -> Result<(RegistryAuth, bool), PullError> {
        let mut kept = self.pass.lock().await;
        if let Some(pass) = kept.as_ref().filter(|pass| Some(*pass) != refused) {
            return Ok((pass.clone(), false));
        }
        let asked = self.endpoint.pass(self.login, self.reference, RegistryOperation::Pull);
        let late = |_| {
            let reason = format!("the login takes longer than {} s", LONGEST_LOGIN.as_secs());
            Err(PullError::Registry { registry: self.endpoint.host.clone(), reason })
        };
        let pass = timeout(LONGEST_LOGIN, asked).await.unwrap_or_else(late)?;
        *kept = Some(pass.clone());
        Ok((pass, true))
    }

    /// What an answer says that is not what was asked for; an error where it may be another one soon, or breaks off.
    pub(super) async fn refusal(&self, mut answer: Response) -> Result<OciDistributionError, PullError> {
        let (status, url, wanted) = (answer.status(), answer.url().to_string(), wanted_pause(&answer));
        let body = self.read(&mut answer, MAX_REFUSAL_BYTES).await?;
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
