//! Registries: where one is asked, over what, and as whom.
//!
//! Plain HTTP is used only for registries that the operator listed as insecure and, as Docker does, for this machine's
//! own. A login goes to the registry that it is for and to no other, never to a mirror.

use std::{net::IpAddr, path::Path, time::Duration};

use oci_client::{
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use orch_proto::wire;
use reqwest::{
    StatusCode, Url,
    header::{CONTENT_TYPE, DATE, RETRY_AFTER, WWW_AUTHENTICATE},
    redirect::Policy,
};
use serde::Deserialize;

use super::{
    pull::{PullError, innermost, patience::is_passing},
    reference::{DEFAULT_REGISTRY, Reference},
};
use crate::config::RegistryConfig;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte for so long, a transfer has failed.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const USER_AGENT: &str = concat!("orch/", env!("CARGO_PKG_VERSION"));
/// How token servers know us.
const CLIENT_ID: &str = "orch";
/// Where Docker Hub answers; its name in references is not its host.
const HUB_HOST: &str = "index.docker.io";
const CERTIFICATE_BEGINS: &str = "-----BEGIN CERTIFICATE-----";
/// Longest part of a registry's words that is shown.
const MAX_REASON_CHARS: usize = 1000;
const NO_TOKEN: &str = "its token server gives no token";
/// What the HTTP client says of a connection that ends without an answer.
const UNANSWERED: &str = "connection closed before message completed";
/// Longest answer of a token server that is read.
const MAX_TOKEN_BYTES: usize = 1 << 20;

/// Where a registry's content may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `host[:port]`.
    pub host: String,
    pub plain_http: bool,
    /// Listed as insecure: any certificate will do.
    pub any_certificate: bool,
    /// Roots that the operator trusts for this registry, PEM.
    pub roots: Vec<String>,
}

/// The registry's mirrors, then itself.
pub(super) fn endpoints(registries: &RegistryConfig, registry: &str) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    if registry == DEFAULT_REGISTRY {
        for mirror in &registries.mirrors {
            match mirror.trim_end_matches('/').split_once("://") {
                Some(("http", host)) => endpoints.push(Endpoint {
                    host: host.to_owned(),
                    plain_http: true,
                    any_certificate: true,
                    roots: Vec::new(),
                }),
                Some((_, host)) => endpoints.extend(of_host(registries, host)),
                None => endpoints.extend(of_host(registries, mirror)),
            }
        }
    }
    endpoints.extend(of_host(registries, registry));
    endpoints
}

/// One registry, over TLS first.
pub(super) fn of_host(registries: &RegistryConfig, host: &str) -> Vec<Endpoint> {
    let insecure = registries.is_insecure(host) || is_this_machine(host);
    let roots = registries.certs.iter().flat_map(|dir| roots_in(&dir.join(host))).collect();
    let https = Endpoint { host: host.to_owned(), plain_http: false, any_certificate: insecure, roots };
    if insecure { vec![https.clone(), Endpoint { plain_http: true, ..https }] } else { vec![https] }
}

/// The certificates of a folder's `*.crt` files. One that cannot be read is as one that is not there: the registry's own
/// certificate is then refused, which says so.
fn roots_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "crt"));
    files.sort();
    let texts = files.iter().filter_map(|path| {
        std::fs::read_to_string(path)
            .inspect_err(|error| tracing::warn!(?path, %error, "a certificate cannot be read"))
            .ok()
    });
    let each = |text: String| {
        let parts: Vec<String> =
            text.split(CERTIFICATE_BEGINS).skip(1).map(|rest| format!("{CERTIFICATE_BEGINS}{rest}")).collect();
        parts
    };
    texts.flat_map(each).collect()
}

fn is_this_machine(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What the user gave for this registry; nothing for any other.
pub(super) fn login_for<'a>(
    login: Option<&'a wire::RegistryAuth>,
    endpoint: &Endpoint,
    reference: &Reference,
) -> Option<&'a wire::RegistryAuth> {
    let is_its_own = |login: &&wire::RegistryAuth| login.registry.is_empty() || login.registry == reference.registry;
    login.filter(|_| endpoint.host == reference.registry).filter(is_its_own)
}

impl Endpoint {
    /// How a login is shown to the registry. An identity token is first turned into an access token, as the registry's
    /// token server wants it.
    async fn auth(&self, login: Option<&wire::RegistryAuth>, scopes: &[String]) -> Result<RegistryAuth, PullError> {
        let Some(login) = login else { return Ok(RegistryAuth::Anonymous) };
        if login.identity_token.is_empty() {
            return Ok(RegistryAuth::Basic(login.username.clone(), login.password.clone()));
        }
        match self.challenge().await? {
            Challenge::Bearer { realm, service } => {
                let token = self.refreshed(&realm, &service, &scopes.join(" "), &login.identity_token).await?;
                Ok(RegistryAuth::Bearer(token))
            }
            Challenge::None | Challenge::Basic => Ok(RegistryAuth::Anonymous),
        }
    }

    /// Whether the registry takes the login; what to keep of it: an identity token where its token server gives one.
    pub(super) async fn check_login(&self, login: &wire::RegistryAuth) -> Result<wire::RegistryAuth, PullError> {
        let (user, password) = (login.username.as_str(), login.password.as_str());
        match self.challenge().await? {
            Challenge::None => Ok(login.clone()),
            Challenge::Basic => {
                let request = self.http()?.get(self.base()).basic_auth(user, Some(password));
                self.accepted(request.send().await.map_err(|error| self.unreachable(&error))?.status())?;
                Ok(login.clone())
            }
            Challenge::Bearer { realm, service } => {
                let query = [
                    ("account", user),
                    ("client_id", CLIENT_ID),
                    ("offline_token", "true"),
                    ("service", service.as_str()),
                ];
                let url = Url::parse_with_params(&realm, query).map_err(|_| self.no_realm(&realm))?;
                let request = self.http()?.get(url).basic_auth(user, Some(password));
                let token = self.token(request).await?;
                let identity_token = token.refresh_token.clone().filter(|token| !token.is_empty());
                if token.text().is_none() {
                    return Err(self.failed(NO_TOKEN.to_owned()));
                }
                let kept = match identity_token {
                    Some(identity_token) => wire::RegistryAuth {
                        username: login.username.clone(),
                        identity_token,
                        ..wire::RegistryAuth::default()
                    },
                    None => login.clone(),
                };
                Ok(kept)
            }
        }
    }

    async fn refreshed(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
        identity_token: &str,
    ) -> Result<String, PullError> {
        let form = [
            ("grant_type", "refresh_token"),
            ("service", service),
            ("client_id", CLIENT_ID),
            ("scope", scope),
            ("refresh_token", identity_token),
        ];
        // Encodes the form as a query does.
        let body = Url::parse_with_params("http://form/", form).ok().and_then(|url| url.query().map(str::to_owned));
        let request = self
            .http()?
            .post(Url::parse(realm).map_err(|_| self.no_realm(realm))?)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body.unwrap_or_default());
        let token = self.token(request).await?;
        token.text().ok_or_else(|| self.failed(NO_TOKEN.to_owned()))
    }

    async fn token(&self, request: reqwest::RequestBuilder) -> Result<Token, PullError> {
        let answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        self.accepted(answer.status())?;
        self.read_token(answer).await
    }

    async fn read_token(&self, mut answer: reqwest::Response) -> Result<Token, PullError> {
        let mut text = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            text.extend_from_slice(&piece);
            if text.len() > MAX_TOKEN_BYTES {
                return Err(self.failed("its token server sends too much".to_owned()));
            }
        }
        serde_json::from_slice(&text).map_err(|error| self.failed(format!("its token server's answer: {error}")))
    }

    /// What the registry is to be shown: a token from its token server, where it has one; else the login itself.
    pub(super) async fn pass(
        &self,
        login: Option<&wire::RegistryAuth>,
        scopes: &[String],
    ) -> Result<RegistryAuth, PullError> {
        let auth = self.auth(login, scopes).await?;
        if matches!(auth, RegistryAuth::Bearer(_)) {
            return Ok(auth);
        }
        let token = self.token_for(&auth, scopes).await?;
        Ok(token.map_or(auth, RegistryAuth::Bearer))
    }

    /// `None`: there is no token server, or it gives a stranger, or this login, no token. Then the registry says what is wrong.
    async fn token_for(&self, auth: &RegistryAuth, scopes: &[String]) -> Result<Option<String>, PullError> {
        let (realm, service) = match self.challenge().await {
            Ok(Challenge::Bearer { realm, service }) => (realm, service),
            Err(error @ PullError::Unreachable { .. }) => return Err(error),
            Ok(Challenge::None | Challenge::Basic) | Err(_) => return Ok(None),
        };
        let scopes = scopes.iter().map(|scope| ("scope", scope.as_str()));
        let query = scopes.chain([("service", service.as_str())]).filter(|(_, value)| !value.is_empty());
        let url = Url::parse_with_params(&realm, query).map_err(|_| self.no_realm(&realm))?;
        let mut request = self.http()?.get(url.clone());
        if let RegistryAuth::Basic(user, password) = auth {
            request = request.basic_auth(user, Some(password));
        }
        let host = url.host_str().unwrap_or_default();
        let answer = request.send().await.map_err(|error| {
            self.failed(format!("its token server {host} cannot be reached: {}", innermost(&error)))
        })?;
        let status = answer.status();
        if is_passing(status.as_u16()) {
            let (reason, wanted) = (format!("its token server answers {status}"), wanted_pause(&answer));
            return Err(PullError::Busy { registry: self.host.clone(), reason, wanted });
        }
        if !status.is_success() {
            return Ok(None);
        }
        let token = self.read_token(answer).await?.text().ok_or_else(|| self.failed(NO_TOKEN.to_owned()))?;
        Ok(Some(token))
    }

    /// Asks the registry's front door, which every registry has, how to log in.
    async fn challenge(&self) -> Result<Challenge, PullError> {
        let answer = self.http()?.get(self.base()).send().await.map_err(|error| self.unreachable(&error))?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => {
                let header = answer.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
                let challenge = header.and_then(Challenge::parse);
                challenge.ok_or_else(|| self.failed("it asks for a login in a way that is not known".to_owned()))
            }
            status if status.is_success() => Ok(Challenge::None),
            status => Err(self.failed(format!("{} answers {status}: is it a registry?", self.base()))),
        }
    }

    fn accepted(&self, status: StatusCode) -> Result<(), PullError> {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                Err(PullError::Login { registry: self.host.clone() })
            }
            status if status.is_success() => Ok(()),
            status => Err(self.failed(format!("it answers the login with {status}"))),
        }
    }

    pub(super) fn base(&self) -> String {
        let host = if self.host == DEFAULT_REGISTRY { HUB_HOST } else { &self.host };
        format!("{}://{host}/v2/", if self.plain_http { "http" } else { "https" })
    }

    pub(super) fn http(&self) -> Result<reqwest::Client, PullError> {
        self.build(reqwest::Client::builder().read_timeout(READ_TIMEOUT))
    }

    /// Follows no redirects.
    pub(super) fn http_of_one_step(&self) -> Result<reqwest::Client, PullError> {
        self.build(reqwest::Client::builder().read_timeout(READ_TIMEOUT).redirect(Policy::none()))
    }

    /// For uploads, whose answer comes when all is sent, which may take hours.
    pub(super) fn http_without_limit(&self) -> Result<reqwest::Client, PullError> {
        self.build(reqwest::Client::builder().redirect(Policy::none()))
    }

    fn build(&self, builder: reqwest::ClientBuilder) -> Result<reqwest::Client, PullError> {
        let mut builder = builder
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(USER_AGENT)
            .danger_accept_invalid_certs(self.any_certificate);
        let roots: Result<Vec<_>, _> =
            self.roots.iter().map(|pem| reqwest::Certificate::from_pem(pem.as_bytes())).collect();
        let roots = roots.map_err(|error| self.unreachable(&error))?;
        if !roots.is_empty() {
            builder = builder.tls_certs_merge(roots);
        }
        builder.build().map_err(|error| self.unreachable(&error))
    }

    /// What TLS says of a registry that speaks plain HTTP, or has a certificate of its own, tells nobody what to do.
    fn advised(&self, reason: String) -> String {
        let host = &self.host;
        if self.plain_http {
            return reason;
        }
        if reason.contains("InvalidContentType") || reason.contains("tls handshake eof") {
            return format!(
                "{reason}; if it is meant to speak plain HTTP, add insecure-registries = [\"{host}\"] to \
                 /etc/orch/orch.toml on every node"
            );
        }
        if reason.contains("UnknownIssuer") || reason.contains("invalid peer certificate") {
            return format!(
                "{reason}; if it is its own authority's, put that one's certificate into \
                 /etc/orch/certs.d/{host}/ca.crt on every node"
            );
        }
        reason
    }

    pub(super) fn error(&self, error: OciDistributionError) -> PullError {
        match error {
            OciDistributionError::RequestError(error) => self.unreachable(&error),
            OciDistributionError::ServerError { code, message, .. } if is_passing(code) => {
                self.busy(code, &message, None)
            }
            OciDistributionError::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|error| error.code == OciErrorCode::Toomanyrequests) =>
            {
                let said: Vec<_> = envelope.errors.iter().map(|error| error.message.as_str()).collect();
                let reason = format!("too many requests: {}", printable(&said.join("; ")));
                PullError::Busy { registry: self.host.clone(), reason, wanted: None }
            }
            other => self.failed(printable(&innermost(&other))),
        }
    }

    /// An answer that may be another one soon; `wanted`: when.
    pub(super) fn busy(&self, code: u16, message: &str, wanted: Option<Duration>) -> PullError {
        let message = printable(message.trim());
        let reason = format!("it answers {code}{}{message}", if message.is_empty() { "" } else { ": " });
        PullError::Busy { registry: self.host.clone(), reason, wanted }
    }

    pub(super) fn unreachable(&self, error: &reqwest::Error) -> PullError {
        let (registry, reason) = (self.host.clone(), innermost(error));
        if let Some(target) = error.url().and_then(|url| self.elsewhere(url)) {
            return PullError::Elsewhere { registry, target, reason };
        }
        if error.is_connect() || error.is_timeout() {
            return PullError::Unreachable { registry, reason: self.advised(reason) };
        }
        match error.is_request() && is_cut(error, &reason) {
            true => PullError::Cut { registry, reason },
            false => PullError::Registry { registry, reason },
        }
    }

    /// Whether an address is at the registry itself, over what it is asked over.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        let place = |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port());
        Url::parse(&self.base()).is_ok_and(|own| place(&own) == place(url))
    }

    /// A registry behind a proxy may not know that it is asked over TLS.
    pub(super) fn not_less_safe(&self, mut url: Url) -> Url {
        let mut over_tls = url.clone();
        if !self.plain_http && over_tls.set_scheme("https").is_ok() && self.is_own(&over_tls) {
            url = over_tls;
        }
        url
    }

    /// The host of an address that is not the registry's own.
    fn elsewhere(&self, url: &Url) -> Option<String> {
        let host = url.host_str().filter(|_| !self.is_own(url))?;
        Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
    }

    pub(super) fn failed(&self, reason: String) -> PullError {
        PullError::Registry { registry: self.host.clone(), reason }
    }

    fn no_realm(&self, realm: &str) -> PullError {
        self.failed(format!("its token server's address {realm:?} is none"))
    }
}

/// What a registry says, fit for a terminal: on one line, no longer than one reads, without what steers terminals.
fn printable(text: &str) -> String {
    let plain = |c: char| match c {
        c if c.is_whitespace() => ' ',
        c if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
        {
            char::REPLACEMENT_CHARACTER
        }
        c => c,
    };
    let mut plain: String = text.chars().map(plain).take(MAX_REASON_CHARS + 1).collect();
    if plain.chars().count() > MAX_REASON_CHARS {
        plain.pop();
        plain.push('\u{2026}');
    }
    plain
}

/// Whether the connection ended before the answer began.
fn is_cut(error: &dyn std::error::Error, reason: &str) -> bool {
    let causes = std::iter::successors(error.source(), |error| error.source());
    reason == UNANSWERED || causes.into_iter().any(|cause| cause.is::<std::io::Error>())
}

/// How a registry wants to be logged in to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    None,
    Basic,
    Bearer { realm: String, service: String },
}

impl Challenge {
    /// `Bearer realm="https://auth.example/token",service="registry"`
    fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(char::is_whitespace).unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, String::new());
        let mut rest = rest.trim_start();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => value.clone_into(&mut service),
                _ => {}
            }
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

/// What a token server answers.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    refresh_token: Option<String>,
}

impl Token {
    fn text(self) -> Option<String> {
        [self.access_token, self.token].into_iter().flatten().find(|token| !token.is_empty())
    }
}

/// For how long a registry that is busy wants to be left alone.
pub(super) fn wanted_pause(answer: &reqwest::Response) -> Option<Duration> {
    let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    pause_of(text(RETRY_AFTER)?, text(DATE), jiff::Timestamp::now())
}

/// Until a date counts from the registry's own, whatever this machine's clock says.
fn pause_of(wanted: &str, its_date: Option<&str>, now: jiff::Timestamp) -> Option<Duration> {
    if let Ok(seconds) = wanted.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let read = |date: &str| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date.trim()).ok();
    let from = its_date.and_then(read).unwrap_or(now);
    // One that has passed: at once.
    Some(Duration::try_from(read(wanted)?.duration_since(from)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(registries: &RegistryConfig, registry: &str, expected: &[(&str, bool, bool)]) {
        let found: Vec<_> =
            endpoints(registries, registry).into_iter().map(|e| (e.host, e.plain_http, e.any_certificate)).collect();
        let expected: Vec<_> = expected.iter().map(|(h, p, a)| ((*h).to_owned(), *p, *a)).collect();
        assert_eq!(found, expected, "{registry}");
    }

    #[test]
    fn plain_http_is_for_this_machine_and_what_the_operator_listed() {
        let registries = RegistryConfig {
            insecure: vec!["reg:5000".to_owned(), "10.1.0.0/16".to_owned(), "fd00::/8".to_owned()],
            mirrors: vec!["http://mirror:80".to_owned(), "https://safe".to_owned()],
            certs: Vec::new(),
        };
        check(&registries, "quay.io", &[("quay.io", false, false)]);
        check(&registries, "reg:5000", &[("reg:5000", false, true), ("reg:5000", true, true)]);
        check(&registries, "reg:5001", &[("reg:5001", false, false)]);
        check(&registries, "10.1.2.3:5000", &[("10.1.2.3:5000", false, true), ("10.1.2.3:5000", true, true)]);
        for host in ["[fd00::1]:5000", "[fd00::1]"] {
            check(&registries, host, &[(host, false, true), (host, true, true)]);
        }
        check(&registries, "[fe80::1]:5000", &[("[fe80::1]:5000", false, false)]);
        check(&registries, "localhost:5000", &[("localhost:5000", false, true), ("localhost:5000", true, true)]);
        let hub = [("mirror:80", true, true), ("safe", false, false), ("docker.io", false, false)];
        check(&registries, "docker.io", &hub);
    }

    #[test]
    fn roots_are_read_from_the_registrys_folder() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("reg:5000");
        std::fs::create_dir(&own).unwrap();
        let one = |name: &str| format!("{CERTIFICATE_BEGINS}\n{name}\n-----END CERTIFICATE-----\n");
        std::fs::write(own.join("a.crt"), format!("words\n{}{}", one("x"), one("y"))).unwrap();
        std::fs::write(own.join("client.cert"), one("z")).unwrap();
        let registries = RegistryConfig { certs: vec![dir.path().to_owned()], ..Default::default() };
        let roots = |host| of_host(&registries, host).remove(0).roots;
        assert_eq!(roots("reg:5000"), [one("x"), one("y")]);
        assert!(roots("reg:5001").is_empty());
    }

    #[test]
    fn what_a_registry_says_is_fit_for_a_terminal() {
        for (said, shown) in [
            ("no such thing", "no such thing".to_owned()),
            ("\u{1b}[2J\u{1b}]0;x\u{7}\u{9b}31m", "\u{fffd}[2J\u{fffd}]0;x\u{fffd}\u{fffd}31m".to_owned()),
            ("a\r\nb\tc", "a  b c".to_owned()),
            ("\u{202e}gpj", "\u{fffd}gpj".to_owned()),
            (&"x".repeat(5000), "x".repeat(MAX_REASON_CHARS) + "\u{2026}"),
        ] {
            assert_eq!(printable(said), shown);
        }
        let endpoint = of_host(&RegistryConfig::default(), "reg").remove(0);
        for (code, is_busy) in [(429, true), (503, true), (418, false)] {
            let (url, message) = ("https://reg/v2/".to_owned(), "\u{1b}[31mno".to_owned());
            let error = endpoint.error(OciDistributionError::ServerError { code, url, message });
            assert_eq!(matches!(error, PullError::Busy { .. }), is_busy, "{code}");
            assert!(!error.to_string().contains('\u{1b}') && error.to_string().contains("[31mno"), "{error}");
        }
    }

    #[test]
    fn a_registry_names_seconds_or_a_date() {
        const NOON: &str = "Sun, 06 Nov 1994 12:00:00 GMT";
        let now = "1994-11-06T12:00:20Z".parse().unwrap();
        for (wanted, its_date, seconds) in [
            ("3", None, Some(3)),
            (" 3 ", Some(NOON), Some(3)),
            ("Sun, 06 Nov 1994 12:00:30 GMT", None, Some(10)),
            ("Sun, 06 Nov 1994 12:00:30 GMT", Some(NOON), Some(30)),
            ("Sun, 06 Nov 1994 12:00:30 GMT", Some("today"), Some(10)),
            (NOON, None, Some(0)),
            ("-3", None, None),
            ("soon", None, None),
        ] {
            assert_eq!(pause_of(wanted, its_date, now), seconds.map(Duration::from_secs), "{wanted} {its_date:?}");
        }
    }

    #[test]
    fn an_address_is_the_registrys_or_anothers() {
        let endpoint = |host: &str| of_host(&RegistryConfig::default(), host).remove(0);
        for (host, url, elsewhere) in [
            ("reg", "https://reg/v2/", None),
            ("reg", "https://reg:443/v2/x", None),
            ("reg:5000", "https://reg:5000/v2/x", None),
            ("docker.io", "https://index.docker.io/v2/", None),
            ("reg", "https://cdn.example/x", Some("cdn.example")),
            ("reg", "https://reg:5000/v2/", Some("reg:5000")),
            ("reg", "http://reg/v2/", Some("reg")),
        ] {
            let found = endpoint(host).elsewhere(&Url::parse(url).unwrap());
            assert_eq!(found.as_deref(), elsewhere, "{host} {url}");
        }
    }

    #[test]
    fn challenges_are_read() {
        let bearer =
            |realm: &str, service: &str| Some(Challenge::Bearer { realm: realm.into(), service: service.into() });
        for (header, expected) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("Bearer realm=\"https://a/t\",service=\"r s\",scope=\"a:b:c,d\"", bearer("https://a/t", "r s")),
            ("bearer service=reg, realm=https://a/t", bearer("https://a/t", "reg")),
            ("Bearer service=\"x\"", None),
            ("Bearer realm=\"x", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
    }

    #[test]
    fn a_login_goes_to_its_registry_alone() {
        let reference = Reference::parse("web").unwrap();
        let registries = RegistryConfig { mirrors: vec!["https://mirror".to_owned()], ..Default::default() };
        let login = |registry: &str| wire::RegistryAuth { registry: registry.to_owned(), ..Default::default() };
        let shown = |login: wire::RegistryAuth| -> Vec<bool> {
            endpoints(&registries, "docker.io")
                .iter()
                .map(|e| login_for(Some(&login), e, &reference).is_some())
                .collect()
        };
        assert_eq!(shown(login("")), [false, true]);
        assert_eq!(shown(login("docker.io")), [false, true]);
        assert_eq!(shown(login("other:5000")), [false, false]);
    }
}
