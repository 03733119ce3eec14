//! A client of the clients: SOCKS requests at a given rate, or bytes against an echo.
//!
//! In: the local port of a DC-net client, a target, a rate. Out: how long each request took.
//! Called by: `cepa dcnet test-client`, the bench.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, interval, timeout},
};

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to ask, where and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `host:port` of the DC-net client.
    pub proxy: String,
    /// `host:port` asked for by SOCKS5; without it the bytes go straight to the exit.
    pub target: Option<String>,
    /// Requests a second.
    pub rate: f64,
    /// Requests in all.
    pub count: usize,
    /// Bytes sent, and expected back.
    pub bytes: usize,
}

/// What came of the requests.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Seconds each successful request took, sorted.
    pub seconds: Vec<f64>,
    /// Why the others failed.
    pub failures: Vec<String>,
}

impl Outcome {
    /// The `fraction` quantile in milliseconds.
    pub fn quantile_ms(&self, fraction: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a list"
        )]
        let at = (fraction * (self.seconds.len().saturating_sub(1)) as f64).round() as usize;
        self.seconds.get(at).copied().unwrap_or(f64::NAN) * 1000.0
    }
}

/// Asks `count` times, `rate` times a second, each on a connection of its own.
pub async fn run(plan: &Plan) -> Outcome {
    let mut tick = interval(Duration::from_secs_f64(1.0 / plan.rate.max(0.001)));
    let mut running = JoinSet::new();
    for _ in 0..plan.count {
        tick.tick().await;
        let plan = plan.clone();
        running.spawn(async move {
            let start = Instant::now();
            match timeout(PATIENCE, request(&plan)).await {
                Ok(Ok(())) => Ok(start.elapsed().as_secs_f64()),
                Ok(Err(error)) => Err(format!("{error:#}")),
                Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
            }
        });
    }
    let mut outcome = Outcome::default();
    while let Some(done) = running.join_next().await {
        match done {
            Ok(Ok(seconds)) => outcome.seconds.push(seconds),
            Ok(Err(why)) => outcome.failures.push(why),
            Err(error) => outcome.failures.push(error.to_string()),
        }
    }
    outcome.seconds.sort_by(f64::total_cmp);
    outcome
}

/// Opens a connection through the proxy, by SOCKS5 when there is a target.
///
/// # Errors
/// When the proxy or the target cannot be reached.
pub async fn open(proxy: &str, target: Option<&str>) -> anyhow::Result<TcpStream> {
    let mut stream =
        TcpStream::connect(proxy).await.with_context(|| format!("reaching {proxy}"))?;
    stream.set_nodelay(true)?;
    let Some(target) = target else { return Ok(stream) };
    let (host, port) = target.rsplit_once(':').context("a target is HOST:PORT")?;
    let port: u16 = port.parse().context("a target is HOST:PORT")?;
    stream.write_all(&[5, 1, 0]).await?;
    let mut choice = [0; 2];
    stream.read_exact(&mut choice).await?;
    ensure!(choice == [5, 0], "expected SOCKS5 without authentication, got {choice:?}");
    let mut request = vec![5, 1, 0, 3, u8::try_from(host.len()).context("the host's name")?];
    request.extend_from_slice(host.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).await?;
    ensure!(answer[1] == 0, "the SOCKS5 server refuses with code {}", answer[1]);
    Ok(stream)
}

async fn request(plan: &Plan) -> anyhow::Result<()> {
    let mut stream = open(&plan.proxy, plan.target.as_deref()).await?;
    let sent: Vec<u8> = (0..plan.bytes).map(|at| (at % 251) as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let mut back = vec![0; plan.bytes];
    let (wrote, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut back));
    wrote?;
    read?;
    if back != sent {
        bail!("the bytes that came back are not those sent");
    }
    Ok(())
}
