//! Answers on the control socket of a daemon.
//!
//! In: connections of the command line. Out: the handler's answers. Called by: node, controller.

use std::{
    fs,
    future::poll_fn,
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

use super::{ControlError, Refusal, RefusalKind, Request, message::Answer};

/// Connections answered at once; further ones wait.
const CONNECTIONS: usize = 16;
/// The longest request line.
const LONGEST_REQUEST: u64 = 64 << 10;
/// The file that is locked.
const LOCK: &str = "lock";
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// The default state directory of a role.
pub(super) fn default_state(role: &str) -> PathBuf {
    Path::new("/var/lib/cepa").join(role)
}

/// The socket in a state directory.
pub(super) fn state_socket(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// The socket of the system's daemon.
pub(super) fn run_socket(role: &str) -> PathBuf {
    Path::new("/run/cepa").join(role).with_added_extension("sock")
}

/// Holds a state directory for this process alone, until dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: fs::File,
}

impl StateLock {
    /// Takes the directory, which must be there and private.
    ///
    /// # Errors
    /// If another process has it, it is open to others, or the system refuses.
    pub fn take(state: &Path) -> Result<Self, ControlError> {
        let system =
            |doing| move |source| ControlError::System { path: state.to_owned(), doing, source };
        let mode = fs::metadata(state).map_err(system("reading the mode"))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(ControlError::OpenDir { dir: state.to_owned(), mode: mode & 0o7777 });
        }
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(state.join(LOCK))
            .map_err(system("opening the lock file"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _file: lock }),
            Err(fs::TryLockError::WouldBlock) => {
                Err(ControlError::AlreadyRuns { dir: state.to_owned() })
            }
            Err(fs::TryLockError::Error(source)) => Err(system("locking")(source)),
        }
    }
}

/// A bound control socket. It also holds the state directory for this process alone.
#[derive(Debug)]
pub struct ControlServer {
    listeners: Vec<Bound>,
    _lock: StateLock,
}

/// A listener and the name it leaves behind.
#[derive(Debug)]
struct Bound {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.path);
    }
}

impl ControlServer {
    /// Makes the state directory if it is not there (mode 0700), takes it for this process, and
    /// binds the socket in it (mode 0600). Needs a tokio runtime.
    ///
    /// # Errors
    /// If another process has the directory, it is open to others, or the system refuses.
    pub fn bind(role: &str, state: &Path) -> Result<Self, ControlError> {
        let system =
            |doing| move |source| ControlError::System { path: state.to_owned(), doing, source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .map_err(system("making the state directory"))?;
        let lock = StateLock::take(state)?;
        let mut listeners = vec![bind_private(&state_socket(state))?];
        if state == default_state(role) {
            let path = run_socket(role);
            let shared = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create("/run/cepa")
                .map_err(system("making /run/cepa"))
                .and_then(|()| bind_private(&path));
            match shared {
                Ok(bound) => listeners.push(bound),
                Err(error) => log::debug!("no socket in /run/cepa: {error}"),
            }
        }
        Ok(Self { listeners, _lock: lock })
    }

    /// Answers requests with `handler`, until this future is dropped.
    pub async fn serve<H, F>(self, handler: H)
    where
        H: Fn(Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<serde_json::Value, Refusal>> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            match self.accept().await {
                Ok(stream) => {
                    let handler = handler.clone();
                    connections.spawn(async move {
                        if let Err(error) = answer_all(stream, handler).await {
                            log::debug!("control connection: {error}");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others must be closed first.
                    log::warn!(event = "control"; "control socket: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// The next connection on any of the sockets.
    async fn accept(&self) -> io::Result<UnixStream> {
        poll_fn(|context| {
            for bound in &self.listeners {
                if let Poll::Ready(accepted) = bound.listener.poll_accept(context) {
                    return Poll::Ready(accepted.map(|(stream, _)| stream));
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Binds a socket that nobody else can open, not even for a moment: it gets its name only after
/// its mode.
fn bind_private(path: &Path) -> Result<Bound, ControlError> {
    let system =
        |doing| move |source| ControlError::System { path: path.to_owned(), doing, source };
    let fresh = path.with_added_extension(format!("{}.new", std::process::id()));
    // Left behind by a process of the same id that was killed here.
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(system("binding the control socket"))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&fresh, path))
        .map_err(system("naming the control socket"))?;
    Ok(Bound { listener, path: path.to_owned() })
}

/// Answers one connection's lines until it closes or falls silent.
async fn answer_all<H, F>(stream: UnixStream, handler: H) -> io::Result<()>
where
    H: Fn(Request) -> F,
    F: Future<Output = Result<serde_json::Value, Refusal>>,
{
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(LONGEST_REQUEST);
        if timeout(SILENCE, limited.read_until(b'\n', &mut line)).await?? == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let answer = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => handler(request).await.into(),
            Err(error) => Answer::Error(Refusal::new(
                RefusalKind::Usage,
                format!(
                    "expected one JSON request of at most {LONGEST_REQUEST} bytes, got: {error}"
                ),
            )),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        timeout(SILENCE, writer.write_all(&text)).await??;
        if !whole {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
