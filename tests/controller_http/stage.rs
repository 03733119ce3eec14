//! A controller in a state directory of its own, and nodes that register with it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use cepa::{
    config::{Admission, ControllerConfig},
    controller::{Administration, Controller, ControllerError, Settings},
    directory::{
        ClientError, ControllerClient, ControllerLink, DESCRIPTOR_VALIDITY, Descriptor, Directory,
        JoinToken, Problem, Registered, SignedDescriptor, WIRE_VERSION, check_probe,
    },
    keys::{Identity, PublicIdentity, onion_key_id},
    model::{CELL_LEN, ExitPolicy, Role, Suite},
    wire::Probe,
};
use jiff::Timestamp;
use tokio::{net::UdpSocket, sync::oneshot, task::JoinHandle};

/// The identities that the tests share; drawing one takes long.
pub(crate) fn identity(index: usize) -> &'static Identity {
    static PARSED: LazyLock<Vec<Identity>> = LazyLock::new(|| {
        (0..8)
            .map(|index| {
                let root = env!("CARGO_MANIFEST_DIR");
                let file = format!("{root}/tests/keys/test-only-{index}.pk8");
                Identity::from_pkcs8(&std::fs::read(file).unwrap()).unwrap()
            })
            .collect()
    });
    &PARSED[index]
}

/// A controller that runs.
pub(crate) struct Stage {
    pub(crate) settings: Settings,
    pub(crate) addr: SocketAddr,
    pub(crate) link: ControllerLink,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
    _folder: Option<tempfile::TempDir>,
}

impl Stage {
    /// A controller in a fresh state directory, after `change` to its settings.
    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings::from(&ControllerConfig::default());
        settings.listen = "127.0.0.1:0".parse().unwrap();
        settings.state = folder.path().join("state");
        settings.admission = Admission::Open;
        change(&mut settings);
        let mut stage = Self::start(settings).await.unwrap();
        stage._folder = Some(folder);
        stage
    }

    pub(crate) async fn open() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn start(settings: Settings) -> Result<Self, ControllerError> {
        let controller = Controller::start(settings.clone()).await?;
        let (stop, stopped) = oneshot::channel();
        let (addr, link) = (controller.addr(), controller.link().clone());
        let task = tokio::spawn(controller.serve(async move {
            let _ = stopped.await;
        }));
        Ok(Self { settings, addr, link, stop: Some(stop), task: Some(task), _folder: None })
    }

    /// Stops the controller and keeps its state.
    pub(crate) async fn stop(&mut self) {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap();
    }

    /// Starts it again, at the same address.
    pub(crate) async fn restart(&mut self) {
        self.settings.listen = self.addr;
        let mut fresh = Self::start(self.settings.clone()).await.unwrap();
        assert_eq!(fresh.addr, self.addr);
        self.stop = fresh.stop.take();
        self.task = fresh.task.take();
        self.link = fresh.link.clone();
    }

    pub(crate) fn client(&self) -> ControllerClient {
        ControllerClient::new(&self.link, None).unwrap()
    }

    pub(crate) fn admin(&self) -> Administration {
        Administration::open_existing(&self.settings).unwrap()
    }

    pub(crate) fn state(&self, file: &str) -> PathBuf {
        self.settings.state.join(file)
    }

    /// The signed directory, checked with the link's fingerprint.
    pub(crate) async fn directory(&self) -> Directory {
        let signed = self.client().directory(None, false).await.unwrap().unwrap();
        Directory::open(&signed, &self.link.fingerprint(), Timestamp::now(), None).unwrap()
    }

    /// Names in the directory, once there are `count` of them.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<String> {
        for _ in 0..100 {
            let directory = self.directory().await;
            let names: Vec<String> =
                directory.nodes().iter().map(|node| node.descriptor.name.clone()).collect();
            if names.len() == count {
                return names;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not {count} nodes within 5 s");
    }

    /// Any request, and what came: status, content type, body.
    pub(crate) async fn raw(
        &self,
        method: &str,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> Raw {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let url = format!("http://{}{path}", self.addr);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = http.request(method, url).body(body).send().await.unwrap();
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        Raw { status, headers, body: response.bytes().await.unwrap().to_vec() }
    }

    pub(crate) async fn get(&self, path: &str) -> Raw {
        self.raw("GET", path, "").await
    }

    pub(crate) async fn post(&self, body: impl Into<reqwest::Body>) -> Raw {
        self.raw("POST", "/nodes", body).await
    }
}

pub(crate) struct Raw {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}: {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    /// The problem, which every refusal must be.
    pub(crate) fn problem(&self) -> Problem {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        assert!(problem.kind.starts_with("urn:cepa:problem:"), "{problem:?}");
        assert!(!problem.title.is_empty() && !problem.detail.is_empty(), "{problem:?}");
        problem
    }
}

/// A node that answers probes on a socket of its own, while it is awake.
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) addr: SocketAddr,
    pub(crate) awake: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Node {
    /// A node of the controller with this public key.
    pub(crate) async fn of(index: usize, controller: PublicIdentity) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let awake = Arc::new(AtomicBool::new(true));
        let listening = Arc::clone(&awake);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2000];
            loop {
                let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
                let Ok(probe) = Probe::parse(&buffer[..len]) else { continue };
                let own = identity(index).id();
                if !listening.load(Relaxed)
                    || check_probe(&probe, &own, &controller, Timestamp::now()).is_err()
                {
                    continue;
                }
                let mut cell = [0; CELL_LEN];
                probe.answer().emit(&mut cell, &mut rand::rng());
                socket.send_to(&cell, from).await.unwrap();
            }
        });
        Self { index, addr, awake, task }
    }

    /// A node that learns the controller's key from its directory.
    pub(crate) async fn join(stage: &Stage, index: usize) -> Self {
        let directory = stage.directory().await;
        Self::of(index, directory.controller().clone()).await
    }

    /// What it says of itself now: `n<index>`, a relay and an exit.
    pub(crate) fn descriptor(&self) -> Descriptor {
        descriptor(self.index, self.addr)
    }

    pub(crate) fn signed(&self) -> SignedDescriptor {
        SignedDescriptor::sign(&self.descriptor(), identity(self.index)).unwrap()
    }

    pub(crate) async fn register(
        &self,
        stage: &Stage,
        join: Option<&JoinToken>,
    ) -> Result<Registered, ClientError> {
        stage.client().register(&self.signed(), join).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn descriptor(index: usize, addr: SocketAddr) -> Descriptor {
    let onion_key = [index as u8; 32];
    let now = Timestamp::now();
    Descriptor {
        name: format!("n{index}"),
        addrs: vec![addr],
        spki: identity(index).spki_der().to_vec(),
        onion_key,
        onion_key_id: onion_key_id(&onion_key),
        roles: vec![Role::Relay, Role::Exit],
        exit_policy: ExitPolicy::default(),
        suites: vec![Suite::Aes128Gcm, Suite::ChaCha20Poly1305],
        operator: None,
        order_key: None,
        wire_version: WIRE_VERSION,
        valid_after: now,
        valid_until: now + DESCRIPTOR_VALIDITY,
    }
}

/// The body of `POST /nodes` for a changed descriptor, signed by its node whatever it says.
pub(crate) fn unchecked_body(index: usize, change: impl FnOnce(&mut serde_json::Value)) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let addr = "127.0.0.1:5000".parse().unwrap();
    let mut json = serde_json::to_value(descriptor(index, addr)).unwrap();
    change(&mut json);
    let bytes = serde_json::to_vec(&json).unwrap();
    let signature = identity(index).sign(&[&b"cepa-descriptor-v1\n"[..], &bytes].concat()).unwrap();
    serde_json::json!({
        "descriptor": STANDARD.encode(bytes), "signature": STANDARD.encode(signature),
    })
    .to_string()
}
