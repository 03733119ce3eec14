//! The thread of the proxies: the stack and every task that uses it.
//!
//! In: addresses to listen on, the stack's side of the lanes. Out: running listeners, their
//! counters. Called by: the client's service.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    rc::Rc,
    sync::Arc,
    thread,
};

use tokio::{sync::oneshot, task::LocalSet};

use super::{
    Dialer, ProxyError,
    counters::{Counters, Limits, Sources},
    dns,
    groups::Groups,
    http, listener,
    names::Names,
    socks,
};
use crate::{
    model::{CLIENT_INNER_V4, CLIENT_INNER_V6},
    stack::{Stack, StackSide},
    telemetry::ProxyStatus,
};

/// What is offered, and where.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    /// A SOCKS5 proxy.
    pub socks: Option<SocketAddr>,
    /// An HTTP proxy.
    pub http: Option<SocketAddr>,
    /// A resolver.
    pub dns: Option<SocketAddr>,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one source.
    pub connections_per_source: usize,
}

impl ProxySettings {
    /// Whether anything is offered.
    pub fn any(&self) -> bool {
        self.socks.is_some() || self.http.is_some() || self.dns.is_some()
    }
}

/// Running proxies; they end when this is dropped.
pub struct Proxies {
    counters: Vec<Arc<Counters>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What was bound before the thread starts, so that a wrong address is told at once.
#[derive(Default)]
struct Bound {
    socks: Option<(TcpListener, Arc<Counters>)>,
    http: Option<(TcpListener, Arc<Counters>)>,
    dns: Option<(UdpSocket, TcpListener, Arc<Counters>)>,
}

impl Proxies {
    /// Listens and serves.
    ///
    /// # Errors
    /// When an address cannot be listened on, or the system refuses a thread.
    pub fn start(settings: &ProxySettings, side: StackSide) -> Result<Self, ProxyError> {
        let bound = bind(settings)?;
        let counters = [
            bound.socks.as_ref().map(|(_, counters)| counters),
            bound.http.as_ref().map(|(_, counters)| counters),
            bound.dns.as_ref().map(|(.., counters)| counters),
        ];
        let counters = counters.into_iter().flatten().map(Arc::clone).collect();
        let limits =
            Limits { total: settings.connections, per_source: settings.connections_per_source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ProxyError::Start)?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("proxies".to_owned())
            .spawn(move || {
                let tasks = LocalSet::new();
                tasks.block_on(&runtime, async {
                    if let Err(error) = spawn(bound, side, limits) {
                        log::error!("the proxies cannot run: {error}");
                    }
                    // Ends with the sender, too.
                    let _ = stopped.await;
                });
            })
            .map_err(ProxyError::Start)?;
        Ok(Self { counters, stop: Some(stop), thread: Some(thread) })
    }

    /// How the listeners are doing.
    pub fn status(&self) -> Vec<ProxyStatus> {
        self.counters.iter().map(|counters| counters.status()).collect()
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already told.
            let _ = thread.join();
        }
    }
}

fn bind(settings: &ProxySettings) -> Result<Bound, ProxyError> {
    let mut bound = Bound::default();
    if let Some(address) = settings.socks {
        bound.socks = Some(listen("socks", "SOCKS5", "socks5", address)?);
    }
    if let Some(address) = settings.http {
        bound.http = Some(listen("http", "HTTP", "http", address)?);
    }
    if let Some(address) = settings.dns {
        let (tcp, counters) = listen("dns", "DNS", "dns", address)?;
        let udp = tcp
            .local_addr()
            .and_then(UdpSocket::bind)
            .and_then(|udp| udp.set_nonblocking(true).map(|()| udp))
            .map_err(|source| ProxyError::Listen { flag: "dns", kind: "DNS", address, source })?;
        bound.dns = Some((udp, tcp, counters));
    }
    Ok(bound)
}

fn listen(
    flag: &'static str,
    kind: &'static str,
    name: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, Arc<Counters>), ProxyError> {
    let listen = || -> io::Result<(TcpListener, SocketAddr)> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, actual) =
        listen().map_err(|source| ProxyError::Listen { flag, kind, address, source })?;
    if !actual.ip().is_loopback() {
        log::warn!(
            event = "open_proxy";
            "the {kind} proxy listens on {actual}: every host of the local networks that reaches \
             this address can use it"
        );
    }
    log::info!(event = "listening"; "{kind} on {actual}");
    Ok((listener, Counters::new(name, actual)))
}

fn spawn(bound: Bound, side: StackSide, limits: Limits) -> io::Result<()> {
    let own = [CLIENT_INNER_V4.into(), CLIENT_INNER_V6.into()];
    let (stack, driver) = Stack::new(side, &own, false);
    tokio::task::spawn_local(driver.run());
    let names = Rc::new(Names::new(stack.clone()));
    let dialer = Dialer::new(stack, Rc::clone(&names));
    let (groups, sources) = (Groups::new(), Sources::new(limits));
    if let Some((listener, counters)) = bound.socks {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (dialer, groups) = (dialer.clone(), groups.clone());
        tokio::task::spawn_local(listener::serve(
            listener,
            counters,
            sources.clone(),
            move |guest| socks::serve(guest, dialer.clone(), groups.clone()),
        ));
    }
    if let Some((listener, counters)) = bound.http {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::task::spawn_local(listener::serve(
            listener,
            counters,
            sources.clone(),
            move |guest| http::serve(guest, dialer.clone(), groups.clone()),
        ));
    }
    if let Some((udp, tcp, counters)) = bound.dns {
        let udp = tokio::net::UdpSocket::from_std(udp)?;
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        dns::serve(udp, tcp, counters, sources, names);
    }
    Ok(())
}
