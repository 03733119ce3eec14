//! Traffic for the bench: echoes that are timed, a flood.
//!
//! In: local ports of clients. Out: seconds. Called by: the bench.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

use crate::dcnet_run::{dial::dial, test_client::Outcome};

/// Something that goes on until it is told to stop.
pub(super) struct Running<T> {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<T>>,
}

impl<T: Send + 'static> Running<T> {
    fn start<F>(work: impl FnOnce(Arc<AtomicBool>) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        Self { task: tokio::spawn(work(Arc::clone(&stop))), stop }
    }

    /// Stops it and gives what it came to.
    pub(super) async fn end(self) -> anyhow::Result<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

/// Sends 100 bytes and waits until they are back; how many seconds that took.
pub(super) async fn echo_once(stream: &mut TcpStream) -> anyhow::Result<f64> {
    let start = Instant::now();
    let sent = [7; 100];
    let mut back = [0; 100];
    stream.write_all(&sent).await?;
    timeout(Duration::from_secs(20), stream.read_exact(&mut back)).await.context("an echo")??;
    Ok(start.elapsed().as_secs_f64())
}

/// Echoes over the given ports in turn.
pub(super) async fn echoes(ports: &[u16], time: Duration) -> anyhow::Result<Outcome> {
    let mut streams = Vec::new();
    for port in ports {
        streams.push(dial(&format!("127.0.0.1:{port}")).await?);
    }
    let mut outcome = Outcome::default();
    for stream in &mut streams {
        echo_once(stream).await?;
    }
    let end = Instant::now() + time;
    'all: loop {
        for stream in &mut streams {
            if Instant::now() > end {
                break 'all;
            }
            outcome.seconds.push(echo_once(stream).await?);
        }
    }
    outcome.seconds.sort_by(f64::total_cmp);
    Ok(outcome)
}

/// Echoes on one connection; ends in the longest, in seconds.
pub(super) fn longest_echo(port: u16) -> Running<f64> {
    Running::start(move |stop| async move {
        let mut stream = dial(&format!("127.0.0.1:{port}")).await?;
        let mut longest: f64 = 0.0;
        while !stop.load(Ordering::Relaxed) {
            longest = longest.max(echo_once(&mut stream).await?);
        }
        Ok(longest)
    })
}

/// Sends through a port as fast as it goes.
pub(super) fn flood(port: u16) -> Running<()> {
    Running::start(move |stop| async move {
        let (mut reader, mut writer) = dial(&format!("127.0.0.1:{port}")).await?.into_split();
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        });
        let chunk = vec![9; 16 * 1024];
        while !stop.load(Ordering::Relaxed) {
            let sent = timeout(Duration::from_secs(1), writer.write_all(&chunk)).await;
            if sent.is_ok_and(|sent| sent.is_err()) {
                break;
            }
        }
        reading.abort();
        Ok(())
    })
}
