//! Asking the controller over HTTP.
//!
//! In: a controller link. Out: typed answers and errors. Called by: node, cli.
//!
//! What matters in the answers is signed, so plain HTTP is enough; proxies of the environment and
//! redirects are not followed, and bodies are bounded.

use std::{net::IpAddr, time::Duration};

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use serde::de::DeserializeOwned;

use super::{
    ControllerLink, DirectoryError, JoinProof, JoinToken, MAX_DIRECTORY_LEN, NodeAnswer, NodeList,
    Problem, Registered, Registration, SignedDescriptor, SignedDirectory, Whoami,
};
use crate::model::Role;

/// How long the controller holds a long poll at most.
pub const LONG_POLL: Duration = Duration::from_secs(25);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long an idle connection is used again: well below the 10 s after which the controller closes
/// it, or every renewal would race with that.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);
/// A directory in base64 in JSON.
const MAX_ANSWER_LEN: usize = MAX_DIRECTORY_LEN / 3 * 4 + 64 * 1024;

/// Why the controller did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer.
    #[error(
        "expected the controller at {url} to answer, got: {cause}; check that it runs, the \
         network and the link"
    )]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why there is none.
        cause: String,
    },
    /// The node has no right to register.
    #[error("not admitted: {}; {}", problem.title, problem.detail)]
    NotAdmitted {
        /// What the controller said.
        problem: Problem,
    },
    /// The controller refuses the request.
    #[error("the controller refused: {}; {}", problem.title, problem.detail)]
    Refused {
        /// What the controller said.
        problem: Problem,
        /// How long to wait before the next attempt, if it said so.
        retry_after: Option<Duration>,
    },
    /// Something else answers there.
    #[error("expected a controller at {url}, got {got}; check the link")]
    BadAnswer {
        /// What was asked.
        url: String,
        /// What came instead.
        got: String,
    },
    /// A signed document in the answer that is refused.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl ClientError {
    /// How long to wait before the next attempt, if the controller said so.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same request can succeed later without anyone's doing.
    pub const fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { problem, .. } => problem.status == 429 || problem.status >= 500,
            _ => false,
        }
    }
}

/// Asks one controller; cheap to clone.
#[derive(Clone, Debug)]
pub struct ControllerClient {
    http: reqwest::Client,
    link: ControllerLink,
}

impl ControllerClient {
    /// A client of the controller behind `link`; requests leave from `local` if it is given.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when no HTTP client can be made.
    pub fn new(link: &ControllerLink, local: Option<IpAddr>) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .pool_idle_timeout(IDLE_CONNECTION)
            .local_address(local)
            .user_agent(concat!("cepa/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ClientError::Unreachable {
                url: link.base_url(),
                cause: causes(&error),
            })?;
        Ok(Self { http, link: link.clone() })
    }

    /// The controller.
    pub const fn link(&self) -> &ControllerLink {
        &self.link
    }

    /// This machine's address as the controller sees it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn whoami(&self) -> Result<IpAddr, ClientError> {
        let answer: Whoami = self.get(&["whoami"], &[]).await?;
        Ok(answer.ip)
    }

    /// Registers or renews; `join` is needed the first time where admission is by token.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::NotAdmitted`] when the token is not accepted.
    pub async fn register(
        &self,
        signed: &SignedDescriptor,
        join: Option<&JoinToken>,
    ) -> Result<Registered, ClientError> {
        let join = join.map(|token| JoinProof {
            token: token.id.to_string(),
            mac: token.secret.mac(&signed.bytes),
        });
        let registration = Registration { signed: signed.clone(), join };
        let url = self.url(&["nodes"], &[])?;
        let request = self.http.request(Method::POST, url.clone()).json(&registration);
        let response = self.send(&url, request).await?;
        Self::read(&url, response).await
    }

    /// The signed directory, or none while it is the one of version `have`. With `wait` the
    /// controller holds the request until there is another, [`LONG_POLL`] at most.
    ///
    /// # Errors
    /// [`ClientError`]. The directory is not checked yet: `DirectoryCache::accept` does.
    pub async fn directory(
        &self,
        have: Option<u64>,
        wait: bool,
    ) -> Result<Option<SignedDirectory>, ClientError> {
        let have = have.map(|version| version.to_string());
        let after = have.as_deref().filter(|_| wait).map(|version| ("after", version));
        let url = self.url(&["directory"], after.as_slice())?;
        let mut request = self.http.get(url.clone()).timeout(LONG_POLL + TIMEOUT);
        if let Some(version) = &have {
            request = request.header(header::IF_NONE_MATCH, format!("\"{version}\""));
        }
        let response = self.send(&url, request).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let body = Self::body(&url, response).await?;
        Ok(Some(SignedDirectory::parse(&body)?))
    }

    /// The live nodes, all or those with a role or a name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn nodes(
        &self,
        role: Option<Role>,
        name: Option<&str>,
    ) -> Result<NodeList, ClientError> {
        let role = role.map(|role| ("role", role.name()));
        let name = name.map(|name| ("name", name));
        let query: Vec<(&str, &str)> = role.into_iter().chain(name).collect();
        self.get(&["nodes"], &query).await
    }

    /// All about one node, by name or id. A client that chooses paths does not ask this: it tells
    /// the controller which node matters.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] with status 404 when there is none.
    pub async fn node(&self, id_or_name: &str) -> Result<NodeAnswer, ClientError> {
        self.get(&["nodes", id_or_name], &[]).await
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, ClientError> {
        let url = self.url(path, query)?;
        let response = self.send(&url, self.http.get(url.clone())).await?;
        Self::read(&url, response).await
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Url, ClientError> {
        let base = self.link.base_url();
        let bad = |cause: String| ClientError::Unreachable { url: base.clone(), cause };
        let mut url = Url::parse(&base).map_err(|error| bad(error.to_string()))?;
        url.path_segments_mut()
            .map_err(|()| bad("a link that is no base of addresses".to_owned()))?
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    /// Sends, and turns every status that is no success into an error.
    async fn send(&self, url: &Url, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| ClientError::Unreachable {
            url: url.to_string(),
            cause: causes(&error.without_url()),
        })?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(|seconds: u32| Duration::from_secs(seconds.into()));
        let body = Self::body(url, response).await?;
        let problem: Problem = serde_json::from_slice(&body).map_err(|_| {
            let got = format!("status {status} without a reason");
            ClientError::BadAnswer { url: url.to_string(), got }
        })?;
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ClientError::NotAdmitted { problem }
            }
            _ => ClientError::Refused { problem, retry_after },
        })
    }

    async fn read<T: DeserializeOwned>(url: &Url, response: Response) -> Result<T, ClientError> {
        let body = Self::body(url, response).await?;
        serde_json::from_slice(&body).map_err(|error| {
            let got = format!("an answer that does not parse ({error})");
            ClientError::BadAnswer { url: url.to_string(), got }
        })
    }

    async fn body(url: &Url, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        loop {
            let chunk = response.chunk().await.map_err(|error| ClientError::Unreachable {
                url: url.to_string(),
                cause: causes(&error.without_url()),
            })?;
            let Some(chunk) = chunk else { return Ok(body) };
            if body.len() + chunk.len() > MAX_ANSWER_LEN {
                let got = format!("an answer of more than {MAX_ANSWER_LEN} bytes");
                return Err(ClientError::BadAnswer { url: url.to_string(), got });
            }
            body.extend_from_slice(&chunk);
        }
    }
}

/// The innermost causes say what happened; the outer ones only that a request failed.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    text
}
