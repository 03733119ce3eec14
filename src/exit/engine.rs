//! The engine of an exit: who gets what comes out of the stack.
//!
//! In: connections, datagrams and echoes of circuits. Out: answers of the resolver; with
//! `--userspace` sockets of this machine. Called by: the exit's service.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use tokio::sync::mpsc;

use super::{echo, flows::Flows, outlet, resolver::Resolver};
use crate::{
    model::{EXIT_INNER_V4, EXIT_INNER_V6, EXIT_RESOLVER_PORT, ExitPolicy},
    stack::{Incoming, Stack, StackSide, Undeliverable},
};

/// What an engine starts with.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// What may be reached, and so what names may resolve to.
    pub policy: ExitPolicy,
    /// The name server; none: those of `/etc/resolv.conf`.
    pub resolver: Option<SocketAddr>,
    /// Whether packets leave by sockets of this program.
    pub userspace: bool,
}

/// The engine.
pub struct Engine;

impl Engine {
    /// Serves until it is dropped; on a thread of its own with a local task set.
    pub async fn run(settings: EngineSettings, side: StackSide, mut ended: mpsc::Receiver<IpAddr>) {
        let own = [EXIT_INNER_V4.into(), EXIT_INNER_V6.into()];
        let (stack, driver) = Stack::new(side, &own, true);
        tokio::task::spawn_local(driver.run());
        let resolver = Rc::new(Resolver::new(settings.resolver, settings.policy));
        let flows = Rc::new(Flows::default());
        loop {
            tokio::select! {
                incoming = stack.incoming() => {
                    handle(incoming, settings.userspace, &stack, &resolver, &flows);
                }
                Some(address) = ended.recv() => {
                    stack.forget(address);
                    flows.forget(address);
                    resolver.forget(address);
                }
            }
        }
    }
}

fn is_resolver(to: SocketAddr) -> bool {
    (to.ip() == EXIT_INNER_V4 || to.ip() == EXIT_INNER_V6) && to.port() == EXIT_RESOLVER_PORT
}

/// The exit's own address of a family, for what it says itself.
pub(super) fn inner_address(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { EXIT_INNER_V4.into() } else { EXIT_INNER_V6.into() }
}

fn handle(
    incoming: Incoming,
    userspace: bool,
    stack: &Stack,
    resolver: &Rc<Resolver>,
    flows: &Rc<Flows>,
) {
    match incoming {
        Incoming::Opening(opening) if is_resolver(opening.ends.local) => {
            if flows.begin_opening(opening.ends) {
                let (stack, flows) = (stack.clone(), Rc::clone(flows));
                let resolver = Rc::clone(resolver);
                tokio::task::spawn_local(async move {
                    let accepted = stack.accept(&opening).await;
                    flows.end_opening(&opening.ends);
                    if let Ok(stream) = accepted {
                        resolver.serve_tcp(stream, opening.ends.remote.ip()).await;
                    }
                });
            }
        }
        Incoming::Datagram { ends, payload } if is_resolver(ends.local) => {
            let (resolver, stack) = (Rc::clone(resolver), stack.clone());
            tokio::task::spawn_local(async move {
                if let Some(answer) = resolver.answer_udp(&payload, ends.remote.ip()).await {
                    stack.send_datagram(ends, &answer);
                }
            });
        }
        Incoming::Opening(opening) if userspace => {
            if flows.begin_opening(opening.ends) {
                let (stack, flows) = (stack.clone(), Rc::clone(flows));
                tokio::task::spawn_local(outlet::connect(stack, flows, opening));
            }
        }
        Incoming::Datagram { ends, payload } if userspace => {
            if let Some((payload, arriving)) = flows.datagram(ends, payload) {
                let (stack, flows) = (stack.clone(), Rc::clone(flows));
                tokio::task::spawn_local(outlet::datagrams(stack, flows, ends, payload, arriving));
            }
        }
        Incoming::Echo(request) if userspace => {
            if let Some(place) = flows.begin_echo() {
                let stack = stack.clone();
                tokio::task::spawn_local(async move {
                    let _place = place;
                    echo::ask(stack, request).await;
                });
            }
        }
        Incoming::Opening(opening) => stack.refuse(&opening),
        Incoming::Unknown(packet) => {
            let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
            let from = if v4 { EXIT_INNER_V4.into() } else { EXIT_INNER_V6.into() };
            stack.tell(from, &packet, Undeliverable::Protocol);
        }
        Incoming::Datagram { .. } | Incoming::Echo(_) => {}
    }
}
