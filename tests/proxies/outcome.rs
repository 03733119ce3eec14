//! A conversation with one of the receiver's servers, and what came of it in words: the same words
//! with and without the proxy.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use cepa::capture::netns::NetNs;

use crate::{
    servers::{self, SOURCE_BYTES, pattern},
    stage::{SOCKS, Stage},
};

/// Connects by SOCKS5; the reply's number if there is no connection.
pub(crate) fn socks(
    from: &NetNs,
    host: &str,
    port: u16,
    login: Option<(&str, &str)>,
) -> Result<TcpStream, u8> {
    let proxy: SocketAddr = SOCKS.parse().unwrap();
    let mut stream = from.run(|| TcpStream::connect(proxy).unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
    stream.write_all(if login.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] }).unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).unwrap();
    assert_eq!(method, [5, if login.is_some() { 2 } else { 0 }]);
    if let Some((user, password)) = login {
        let mut bytes = vec![1, user.len() as u8];
        bytes.extend(user.as_bytes());
        bytes.push(password.len() as u8);
        bytes.extend(password.as_bytes());
        stream.write_all(&bytes).unwrap();
        stream.read_exact(&mut method).unwrap();
        assert_eq!(method, [1, 0]);
    }
    let mut request = vec![5, 1, 0, 3, host.len() as u8];
    request.extend(host.as_bytes());
    request.extend(port.to_be_bytes());
    stream.write_all(&request).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!((reply[0], reply[3]), (5, 1));
    if reply[1] == 0 { Ok(stream) } else { Err(reply[1]) }
}

/// What a connection that could not be made is called in a SOCKS reply.
fn reply_of(error: &std::io::Error) -> u8 {
    match error.kind() {
        ErrorKind::ConnectionRefused => 5,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::TimedOut => 4,
        _ => 1,
    }
}

/// How a conversation is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    Direct,
    Proxy,
}

fn open(stage: &Stage, by: By, host: &str, port: u16) -> Result<TcpStream, u8> {
    match by {
        By::Proxy => socks(&stage.sender, host, port, None),
        By::Direct => {
            let address = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            stage.connect(&stage.exit, &address).map_err(|error| reply_of(&error))
        }
    }
}

fn words(result: std::io::Result<String>) -> String {
    match result {
        Ok(text) => text,
        Err(error) => format!("{:?}", error.kind()),
    }
}

type Talk = fn(&Stage, By) -> String;

/// Every conversation, by name.
pub(crate) const ALL: [(&str, Talk); 9] = [
    ("half-closed", half_closed),
    ("slow reader", slow_reader),
    ("slow server", slow_server),
    ("reset by the server", reset),
    ("server that never answers", silent),
    ("nobody listens", closed),
    ("no such host", no_host),
    ("over IPv6", six),
    ("no such network", no_network),
];

fn on(
    stage: &Stage,
    by: By,
    port: u16,
    talk: impl Fn(TcpStream) -> std::io::Result<String>,
) -> String {
    match open(stage, by, &servers::V4.to_string(), port) {
        Ok(stream) => words(talk(stream)),
        Err(reply) => format!("reply {reply}"),
    }
}

fn half_closed(stage: &Stage, by: By) -> String {
    on(stage, by, servers::HALF_CLOSE, |mut stream| {
        stream.write_all(&pattern(300_000))?;
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

fn slow_reader(stage: &Stage, by: By) -> String {
    on(stage, by, servers::SOURCE, |mut stream| {
        let mut all = Vec::new();
        let mut bytes = vec![0; 100_000];
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(50));
            let len = stream.read(&mut bytes)?;
            all.extend(&bytes[..len]);
        }
        stream.read_to_end(&mut all)?;
        Ok(format!("all right: {}", all == pattern(SOURCE_BYTES)))
    })
}

fn slow_server(stage: &Stage, by: By) -> String {
    on(stage, by, servers::SLOW, |mut stream| {
        stream.write_all(&pattern(SOURCE_BYTES))?;
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

fn reset(stage: &Stage, by: By) -> String {
    on(stage, by, servers::RESET, |mut stream| {
        stream.write_all(&[1])?;
        stream.read(&mut [0; 10]).map(|len| format!("{len} bytes"))
    })
}

fn silent(stage: &Stage, by: By) -> String {
    on(stage, by, servers::SILENT, |mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(b"anybody there?")?;
        stream.read(&mut [0; 10]).map(|len| format!("{len} bytes"))
    })
}

fn closed(stage: &Stage, by: By) -> String {
    on(stage, by, servers::CLOSED, |_| Ok("open".to_owned()))
}

fn no_host(stage: &Stage, by: By) -> String {
    match open(stage, by, "203.0.113.77", 80) {
        Ok(_) => "open".to_owned(),
        Err(reply) => format!("reply {reply}"),
    }
}

fn no_network(stage: &Stage, by: By) -> String {
    match open(stage, by, "198.18.0.1", 80) {
        Ok(_) => "open".to_owned(),
        Err(reply) => format!("reply {reply}"),
    }
}

fn six(stage: &Stage, by: By) -> String {
    match open(stage, by, &servers::V6.to_string(), servers::ECHO) {
        Ok(mut stream) => words((|| {
            stream.write_all(b"six")?;
            stream.shutdown(Shutdown::Write)?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })()),
        Err(reply) => format!("reply {reply}"),
    }
}
