//! The head of a request to the HTTP proxy (RFC 9110, RFC 9112).
//!
//! In: the bytes of a client so far. Out: what is asked and the head to send on, or the answer
//! that a malformed one gets. Called by: the HTTP proxy, its fuzz target.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use httparse::{Request, Status};

use crate::client::Target;

/// The longest head.
pub const MOST_BYTES: usize = 16 << 10;
const MOST_HEADERS: usize = 96;
/// Headers that are between a client and its proxy.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "proxy-connection",
    "proxy-authorization",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "host",
    "http2-settings",
];

/// How far a head has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// Something is missing.
    Missing,
    /// A head and its length in bytes.
    Whole(Head, usize),
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// What is asked.
    pub asked: Asked,
    /// User and password, in the form of a SOCKS5 login.
    pub login: Option<Vec<u8>>,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A tunnel.
    Connect(Target),
    /// One request.
    Forward {
        /// To whom.
        target: Target,
        /// The head, as the server gets it.
        head: Vec<u8>,
        /// What follows.
        body: Body,
    },
}

/// What follows a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// Nothing.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks, until the last one.
    Chunked,
}

/// Why a request gets an error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is no HTTP request, or one that contradicts itself.
    Malformed(&'static str),
    /// Its head is too long.
    TooLong,
    /// It took too long.
    TooSlow,
    /// It is of a kind that a proxy for HTTP does not carry.
    NotCarried,
    /// There is no connection to its target: why, and the status.
    Dial(String, &'static str),
}

impl Refusal {
    /// The answer.
    pub fn emit(&self) -> Vec<u8> {
        let (status, why) = match self {
            Self::Malformed(why) => ("400 Bad Request", *why),
            Self::TooLong => {
                ("431 Request Header Fields Too Large", "expected a head of at most 16 KiB")
            }
            Self::TooSlow => ("408 Request Timeout", "expected the whole head within 10 seconds"),
            Self::NotCarried => {
                ("501 Not Implemented", "expected CONNECT or a request for an http:// address")
            }
            Self::Dial(why, status) => (*status, why.as_str()),
        };
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain\r\n\
             Content-Length: {}\r\n\r\ncepa: {why}\n",
            why.len() + 7
        )
        .into_bytes()
    }
}

/// Reads a head.
///
/// # Errors
/// The answer that a malformed one gets.
pub fn parse(bytes: &[u8]) -> Result<Read, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = Request::new(&mut headers);
    let len = match request.parse(&bytes[..bytes.len().min(MOST_BYTES)]) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) if bytes.len() >= MOST_BYTES => return Err(Refusal::TooLong),
        Ok(Status::Partial) => return Ok(Read::Missing),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLong),
        Err(_) => return Err(Refusal::Malformed("this is no HTTP request")),
    };
    let (Some(method), Some(address)) = (request.method, request.path) else {
        return Err(Refusal::Malformed("this is no HTTP request"));
    };
    let login = login(&request)?;
    let asked = if method == "CONNECT" {
        Asked::Connect(authority(address, None)?)
    } else {
        forward(method, address, &request)?
    };
    Ok(Read::Whole(Head { asked, login }, len))
}

/// `host:port`, or `host` where a port is known.
fn authority(text: &str, port: Option<u16>) -> Result<Target, Refusal> {
    let wrong = Refusal::Malformed("expected HOST:PORT as the address");
    let (host, port) = match text.rsplit_once(':') {
        Some((host, number)) if !number.contains(']') => match number.parse() {
            Ok(number) => (host, number),
            Err(_) => return Err(wrong),
        },
        _ => match port {
            Some(port) => (text, port),
            None => return Err(wrong),
        },
    };
    if port == 0 {
        return Err(wrong);
    }
    Target::new(host, port).map_err(|_| Refusal::Malformed("expected the name of a host"))
}

fn forward(method: &str, address: &str, request: &Request<'_, '_>) -> Result<Asked, Refusal> {
    if address.starts_with('/') {
        return Err(Refusal::Malformed("this is a proxy: it takes whole http:// addresses"));
    }
    let is_http = address.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("http://"));
    let Some(rest) = address.get(7..).filter(|_| is_http) else { return Err(Refusal::NotCarried) };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    if host.contains('@') {
        return Err(Refusal::Malformed("expected no user or password in the address"));
    }
    let path = path.split('#').next().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let target = authority(host, Some(80))?;
    let body = body(request)?;
    let mut head =
        format!("{method} {slash}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n")
            .into_bytes();
    let named: Vec<String> = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("connection"))
        .filter_map(|header| std::str::from_utf8(header.value).ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    for header in request.headers.iter() {
        let name = header.name.to_ascii_lowercase();
        let is_framing = matches!(name.as_str(), "content-length" | "transfer-encoding");
        if HOP_BY_HOP.contains(&name.as_str()) || (named.contains(&name) && !is_framing) {
            continue;
        }
        head.extend(header.name.as_bytes());
        head.extend(b": ");
        head.extend(header.value);
        head.extend(b"\r\n");
    }
    head.extend(b"\r\n");
    Ok(Asked::Forward { target, head, body })
}

/// What follows; a head that can be read in two ways is refused.
fn body(request: &Request<'_, '_>) -> Result<Body, Refusal> {
    let mut body = Body::None;
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        let found = if header.name.eq_ignore_ascii_case("content-length") {
            let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            match value.parse() {
                Ok(len) if is_number => Body::Length(len),
                _ => return Err(Refusal::Malformed("expected a number as Content-Length")),
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(Refusal::Malformed("expected chunked as Transfer-Encoding"));
            }
            Body::Chunked
        } else {
            continue;
        };
        if body != Body::None && body != found {
            return Err(Refusal::Malformed("expected one length of the body"));
        }
        body = found;
    }
    Ok(body)
}

/// User and password, as SOCKS5 has them, so that one login is one group at both proxies.
fn login(request: &Request<'_, '_>) -> Result<Option<Vec<u8>>, Refusal> {
    let wrong = Refusal::Malformed("expected Proxy-Authorization: Basic");
    let Some(header) = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("proxy-authorization"))
    else {
        return Ok(None);
    };
    let text = std::str::from_utf8(header.value).map_err(|_| wrong.clone())?;
    let (scheme, code) = text.trim().split_once(' ').ok_or_else(|| wrong.clone())?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(wrong);
    }
    let decoded = STANDARD.decode(code.trim()).map_err(|_| wrong.clone())?;
    let colon = decoded.iter().position(|byte| *byte == b':').ok_or(wrong)?;
    let (user, password) = (&decoded[..colon], &decoded[colon + 1..]);
    let mut login = vec![user.len() as u8];
    login.extend(user);
    login.push(password.len() as u8);
    login.extend(password);
    Ok(Some(login))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> Head {
        match parse(text.as_bytes()) {
            Ok(Read::Whole(head, len)) if len == text.len() => head,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn status(text: &str) -> String {
        let answer = parse(text.as_bytes()).unwrap_err().emit();
        String::from_utf8(answer).unwrap()[9..12].to_owned()
    }

    #[test]
    fn connect_names_a_host_and_a_port() {
        let head = whole("CONNECT Example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(head.asked, Asked::Connect(Target::new("example.org", 443).unwrap()));
        let head = whole("CONNECT [2001:db8::1]:22 HTTP/1.1\r\n\r\n");
        assert_eq!(head.asked, Asked::Connect(Target::new("2001:db8::1", 22).unwrap()));
    }

    #[test]
    fn a_plain_request_is_sent_on_without_what_is_the_proxys() {
        let head = whole(
            "POST http://a.example:81/x?y#z HTTP/1.1\r\nHost: evil\r\nProxy-Connection: k\r\n\
             Connection: X-Mine\r\nX-Mine: 1\r\nX-Theirs: 2\r\nContent-Length: 3\r\n\r\n",
        );
        let Asked::Forward { target, head, body } = head.asked else { panic!() };
        assert_eq!((target, body), (Target::new("a.example", 81).unwrap(), Body::Length(3)));
        assert_eq!(
            String::from_utf8(head).unwrap(),
            "POST /x?y HTTP/1.1\r\nHost: a.example:81\r\nConnection: close\r\nX-Theirs: 2\r\n\
             Content-Length: 3\r\n\r\n"
        );
    }

    #[test]
    fn every_malformed_request_has_its_status() {
        for (text, expected) in [
            ("\0\0\0\0\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\n\r\n", "400"),
            ("CONNECT a.example HTTP/1.1\r\n\r\n", "400"),
            ("CONNECT a.example:0 HTTP/1.1\r\n\r\n", "400"),
            ("CONNECT a.example:66000 HTTP/1.1\r\n\r\n", "400"),
            ("GET http://u:p@a.example/ HTTP/1.1\r\n\r\n", "400"),
            ("GET http://b.onion/ HTTP/1.1\r\n\r\n", "400"),
            ("GET ftp://a.example/ HTTP/1.1\r\n\r\n", "501"),
            ("GET https://a.example/ HTTP/1.1\r\n\r\n", "501"),
            ("GET http://a.b/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "400"),
            ("GET http://a.b/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"),
            (
                "GET http://a.b/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "400",
            ),
            ("GET http://a.b/ HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "400"),
            ("GET http://a.b/ HTTP/1.1\r\nProxy-Authorization: Bearer x\r\n\r\n", "400"),
        ] {
            assert_eq!(status(text), expected, "{text:?}");
        }
        let long = format!("GET http://a.b/ HTTP/1.1\r\nX: {}", "x".repeat(MOST_BYTES));
        assert_eq!(status(&long), "431");
        let many = format!("GET http://a.b/ HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200));
        assert_eq!(status(&many), "431");
        assert_eq!(parse(b"GET http://a.b/ HT"), Ok(Read::Missing));
    }

    #[test]
    fn a_login_is_the_same_as_at_the_socks_proxy() {
        let code = STANDARD.encode("ann:secret");
        let head =
            whole(&format!("CONNECT a.b:1 HTTP/1.1\r\nProxy-Authorization: Basic {code}\r\n\r\n"));
        assert_eq!(head.login.unwrap(), b"\x03ann\x06secret");
    }

    proptest! {
        #[test]
        fn what_is_sent_on_is_one_request_for_one_server(
            path in "[a-z/?=&%]{0,20}",
            names in proptest::collection::vec("[A-Za-z-]{1,12}", 0..6),
            value in "[ -~]{0,20}",
        ) {
            let headers: String =
                names.iter().map(|name| format!("{name}: {value}\r\n")).collect();
            let text = format!("GET http://a.example/{path} HTTP/1.1\r\n{headers}\r\n");
            if let Ok(Read::Whole(Head { asked: Asked::Forward { head, .. }, .. }, len)) =
                parse(text.as_bytes())
            {
                prop_assert_eq!(len, text.len());
                let mut headers = [httparse::EMPTY_HEADER; 128];
                let mut sent = Request::new(&mut headers);
                prop_assert_eq!(sent.parse(&head), Ok(Status::Complete(head.len())));
                let count = |name: &str| {
                    sent.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).count()
                };
                prop_assert_eq!((count("host"), count("connection")), (1, 1));
                prop_assert_eq!(count("proxy-authorization"), 0);
            }
        }

        #[test]
        fn noise_is_refused_or_incomplete(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
