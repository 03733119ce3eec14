//! Both sides of the control socket, over a real one.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream as Blocking,
};

use super::*;
use crate::telemetry::control::{Place, ask};

const PATIENCE: Duration = Duration::from_secs(5);

async fn echo(request: Request) -> Result<serde_json::Value, Refusal> {
    match request.command.as_str() {
        "echo" => Ok(request.args),
        "slow" => {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Ok(serde_json::Value::Null)
        }
        _ => Err(request.unknown("test")),
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    folder
}

/// Runs `test` on another thread while the server answers.
async fn with_server<T: Send + 'static>(
    state: &Path,
    test: impl FnOnce(Place) -> T + Send + 'static,
) -> T {
    let server = ControlServer::bind("test", state).unwrap();
    let place = Place::new("test", Some(state));
    let test = tokio::task::spawn_blocking(move || test(place));
    tokio::select! {
        () = server.serve(echo) => unreachable!("it serves until it is dropped"),
        result = test => result.unwrap(),
    }
}

#[tokio::test]
async fn a_question_gets_its_answer() {
    let state = folder();
    let socket = state_socket(state.path());
    with_server(state.path(), move |place| {
        let args = serde_json::json!({"a": [1, 2]});
        let answer = ask(&place, &Request::with("echo", &args), PATIENCE).unwrap();
        assert_eq!(answer, args);
        let refused = ask(&place, &Request::plain("fly"), PATIENCE).unwrap_err();
        assert!(refused.to_string().contains("expected a command of a test, got \"fly\""));
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    })
    .await;
    assert!(!state_socket(state.path()).exists(), "the name is left behind");
}

#[tokio::test]
async fn many_questions_on_one_connection_and_many_connections() {
    let state = folder();
    let socket = state_socket(state.path());
    with_server(state.path(), move |place| {
        let mut stream = Blocking::connect(&socket).unwrap();
        stream
            .write_all(b"{\"command\":\"echo\",\"args\":1}\n{\"command\":\"echo\",\"args\":2}\n")
            .unwrap();
        let mut answers = vec![0; 18];
        stream.read_exact(&mut answers).unwrap();
        assert_eq!(answers, b"{\"ok\":1}\n{\"ok\":2}\n");
        drop(stream);
        for _ in 0..3 * CONNECTIONS {
            ask(&place, &Request::plain("echo"), PATIENCE).unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn noise_is_refused_and_harms_nobody() {
    let state = folder();
    let socket = state_socket(state.path());
    with_server(state.path(), move |place| {
        let mut stream = Blocking::connect(&socket).unwrap();
        stream.write_all(b"\xff\xfe noise\n").unwrap();
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"{\"error\":");
        let mut flood = Blocking::connect(&socket).unwrap();
        let _ = flood.write_all(&vec![b'x'; 200 << 10]);
        ask(&place, &Request::plain("echo"), PATIENCE).unwrap();
    })
    .await;
}

#[tokio::test]
async fn patience_ends() {
    let state = folder();
    with_server(state.path(), |place| {
        let error = ask(&place, &Request::plain("slow"), Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, ControlError::Slow { .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn nobody_there_says_how_to_start() {
    let state = folder();
    let place = Place::new("node", Some(state.path()));
    let error = ask(&place, &Request::plain("status"), PATIENCE).unwrap_err();
    assert!(matches!(error, ControlError::NoDaemon { .. }));
    assert!(error.to_string().contains("cepa node --state"), "{error}");
}

#[tokio::test]
async fn one_process_per_state_directory_and_a_killed_one_leaves_no_trace() {
    let state = folder();
    let first = ControlServer::bind("test", state.path()).unwrap();
    let second = ControlServer::bind("test", state.path()).unwrap_err();
    assert!(matches!(second, ControlError::AlreadyRuns { .. }), "{second}");
    drop(first);
    // What a kill leaves: the lock is gone, the socket's name is still there.
    fs::write(state_socket(state.path()), "").unwrap();
    ControlServer::bind("test", state.path()).unwrap();
}

#[tokio::test]
async fn an_open_directory_is_refused() {
    let state = folder();
    fs::set_permissions(state.path(), fs::Permissions::from_mode(0o750)).unwrap();
    let error = ControlServer::bind("test", state.path()).unwrap_err();
    assert!(error.to_string().contains("expected mode 0700, got 0750"), "{error}");
    assert!(error.to_string().contains("chmod 700"), "{error}");
}
