//! Asks a daemon one question.
//!
//! In: a request. Out: the daemon's answer. Called by: cli, rig.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{ControlError, Request, message::Answer};

/// Room for any honest answer; more is refused.
const LONGEST_ANSWER: u64 = 16 << 20;

/// Where a daemon's control socket may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    role: String,
    sockets: Vec<PathBuf>,
    start: String,
}

impl Place {
    /// The places of the role whose state directory is `state`; none: the system's daemon.
    pub fn new(role: &str, state: Option<&Path>) -> Self {
        let (sockets, start) = match state {
            Some(dir) => (
                vec![super::serve::state_socket(dir)],
                match role {
                    "daemon" => format!(
                        "start one with: cepa node, client or controller, and --state {}",
                        dir.display()
                    ),
                    _ => format!("start it with: cepa {role} --state {}", dir.display()),
                },
            ),
            None => (
                vec![
                    super::serve::run_socket(role),
                    super::serve::state_socket(&super::serve::default_state(role)),
                ],
                format!(
                    "start it with: systemctl start cepa-{role}, or: cepa {role}, or name its \
                     state directory with --state"
                ),
            ),
        };
        Self { role: role.to_owned(), sockets, start }
    }

    /// The role that is asked.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The sockets that are tried, in order.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    fn connect(&self) -> Result<(UnixStream, &Path), ControlError> {
        let mut denied = None;
        for socket in &self.sockets {
            match UnixStream::connect(socket) {
                Ok(stream) => return Ok((stream, socket)),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    denied.get_or_insert(socket);
                }
                Err(_) => {}
            }
        }
        match (denied, self.sockets.first()) {
            (Some(socket), _) => Err(ControlError::Denied { socket: socket.clone() }),
            (None, first) => Err(ControlError::NoDaemon {
                role: self.role.clone(),
                socket: first.cloned().unwrap_or_default(),
                start: self.start.clone(),
            }),
        }
    }
}

/// Sends `request` to the daemon at `place` and waits at most `patience` for its answer.
///
/// # Errors
/// If nobody answers, in time and in this protocol, or the daemon refuses.
pub fn ask(
    place: &Place,
    request: &Request,
    patience: Duration,
) -> Result<serde_json::Value, ControlError> {
    let (mut stream, socket) = place.connect()?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ControlError::Slow { socket: socket.to_owned(), seconds: patience.as_secs() }
        }
        _ => ControlError::System { path: socket.to_owned(), doing: "asking", source: error },
    };
    stream.set_read_timeout(Some(patience)).map_err(failed)?;
    stream.set_write_timeout(Some(patience)).map_err(failed)?;
    let garbled = |got: String| ControlError::Garbled { socket: socket.to_owned(), got };
    let mut line = serde_json::to_vec(request).map_err(|error| garbled(error.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(LONGEST_ANSWER).read_until(b'\n', &mut answer).map_err(failed)?;
    if answer.is_empty() {
        return Err(garbled("nothing".to_owned()));
    }
    match serde_json::from_slice(&answer) {
        Ok(Answer::Ok(value)) => Ok(value),
        Ok(Answer::Error(refusal)) => Err(refusal.into()),
        Err(error) => Err(garbled(format!("{} bytes ({error})", answer.len()))),
    }
}
