//! Who may see the page: a browser that showed a one-time code, from the page itself.
//!
//! In: hosts, origins, cookies, codes, tokens. Out: yes or no. Called by: web (server, api).
//!
//! Against other pages in the same browser: the `Host` must be a loopback name with our port (so no
//! other name can be bound to us), the `Origin` of every change must be ours, the cookie is
//! `SameSite=Strict`, and every change carries a token that only our own page can read.

use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

/// Browsers that may be let in, at most.
const SESSIONS: usize = 16;
/// Wrong codes after which the code is changed.
const GUESSES: u32 = 5;
const COOKIE: &str = "cepa-peer";
/// The header of the token.
pub(super) const TOKEN: &str = "x-cepa-token";

fn drawn() -> String {
    let bytes: [u8; 16] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

struct Session {
    cookie: String,
    token: String,
}

struct State {
    code: String,
    guesses: u32,
    sessions: Vec<Session>,
}

/// The door of one page.
pub struct Door {
    port: u16,
    state: Mutex<State>,
    on_code: Box<dyn Fn(&str) + Send + Sync>,
}

impl Door {
    /// A door of the page on `port`. `on_code` is told every new one-time code, the first at once.
    pub fn new(port: u16, on_code: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let code = drawn();
        on_code(&code);
        let state = State { code, guesses: 0, sessions: Vec::new() };
        Self { port, state: Mutex::new(state), on_code: Box::new(on_code) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request names this machine and this port.
    pub(super) fn is_our_host(&self, headers: &HeaderMap) -> bool {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        self.is_ours(host)
    }

    fn is_ours(&self, host: &str) -> bool {
        ["127.0.0.1", "localhost", "[::1]"]
            .iter()
            .any(|name| host.strip_prefix(name) == Some(&format!(":{}", self.port)[..]))
    }

    /// Whether the request comes from our own page: a change has to.
    pub(super) fn is_our_origin(&self, headers: &HeaderMap) -> bool {
        let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
        origin
            .and_then(|origin| origin.strip_prefix("http://"))
            .is_some_and(|host| self.is_ours(host))
    }

    /// Takes a one-time code; the cookie of the new session.
    pub(super) fn enter(&self, code: &str) -> Option<String> {
        let mut state = self.state();
        let is_right = same(&state.code, code.trim());
        if !is_right {
            state.guesses += 1;
            if state.guesses < GUESSES {
                return None;
            }
        }
        state.code = drawn();
        state.guesses = 0;
        let fresh = state.code.clone();
        let cookie = is_right.then(|| {
            if state.sessions.len() >= SESSIONS {
                state.sessions.remove(0);
            }
            let session = Session { cookie: drawn(), token: drawn() };
            let cookie = session.cookie.clone();
            state.sessions.push(session);
            format!("{COOKIE}={cookie}; HttpOnly; SameSite=Strict; Path=/")
        });
        drop(state);
        (self.on_code)(&fresh);
        cookie
    }

    /// The token of the session whose cookie the request carries.
    pub(super) fn token(&self, headers: &HeaderMap) -> Option<String> {
        let cookies =
            headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let own = cookies
            .flat_map(|line| line.split(';'))
            .find_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))?;
        let state = self.state();
        let found = state.sessions.iter().find(|session| same(&session.cookie, own));
        found.map(|session| session.token.clone())
    }

    /// Whether the request may change something: our origin, a session, its token.
    pub(super) fn may_change(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(TOKEN).and_then(|token| token.to_str().ok()).unwrap_or("");
        self.is_our_origin(headers) && self.token(headers).is_some_and(|token| same(&token, given))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                let name = axum::http::HeaderName::from_static(name);
                (name, HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn only_loopback_names_with_our_port() {
        let door = Door::new(8086, |_| ());
        for good in ["127.0.0.1:8086", "localhost:8086", "[::1]:8086"] {
            assert!(door.is_our_host(&headers(&[("host", good)])), "{good}");
            let origin = format!("http://{good}");
            assert!(door.is_our_origin(&headers(&[("origin", &origin)])), "{good}");
        }
        for bad in ["evil.example:8086", "127.0.0.1", "127.0.0.1:80", "localhost:8086.evil.example"]
        {
            assert!(!door.is_our_host(&headers(&[("host", bad)])), "{bad}");
            let origin = format!("http://{bad}");
            assert!(!door.is_our_origin(&headers(&[("origin", &origin)])), "{bad}");
        }
        assert!(!door.is_our_origin(&headers(&[("origin", "null")])));
        assert!(!door.is_our_host(&HeaderMap::new()));
    }

    #[test]
    fn a_code_opens_once_and_guesses_change_it() {
        let codes = std::sync::Arc::new(Mutex::new(Vec::new()));
        let told = std::sync::Arc::clone(&codes);
        let door = Door::new(1, move |code| told.lock().unwrap().push(code.to_owned()));
        let first = codes.lock().unwrap()[0].clone();
        let cookie = door.enter(&first).unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
        assert_eq!(door.enter(&first), None, "used");
        let second = codes.lock().unwrap().last().unwrap().clone();
        for _ in 0..GUESSES {
            assert_eq!(door.enter("guess"), None);
        }
        assert_eq!(door.enter(&second), None, "changed after guesses");
        let value = cookie.split(';').next().unwrap();
        let own = headers(&[("cookie", value)]);
        let token = door.token(&own).unwrap();
        let change = |origin: &str, token: &str| {
            let all = [("cookie", value), ("origin", origin), (TOKEN, token)];
            door.may_change(&headers(&all))
        };
        assert!(change("http://127.0.0.1:1", &token));
        assert!(!change("http://evil.example", &token));
        assert!(!change("http://127.0.0.1:1", "x"));
        assert!(!door.may_change(&headers(&[("origin", "http://127.0.0.1:1"), (TOKEN, &token)])));
        assert_eq!(door.token(&headers(&[("cookie", "cepa-peer=x")])), None);
    }
}
