//! The page of a real peer in a real browser, over a network in memory. Screenshots stay in
//! `target/peer-page/`. Needs node, npm and chromium, which `scripts/test` installs.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "peer/net.rs"]
mod net;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use cepa::{
    peer::transfer::TransferConfig,
    peer_run::{Engine, EngineSettings, PageBackend, Visibility},
    web::{Door, serve},
};
use net::{CALM, Weather, World};
use tokio::net::TcpListener;

const HOSTILE: &str = "<img src=x onerror=alert(1)> \u{202e}gpj.exe\u{7} '\"&;\n.mp4";

fn is_there(command: &str) -> bool {
    Command::new(command).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn engine(world: &World, weather: Weather, folder: &Path) -> Arc<Engine> {
    let (network, events) = world.join(weather);
    let settings = EngineSettings {
        state: folder.join("state"),
        downloads: folder.join("downloads"),
        transfer: TransferConfig::default(),
    };
    Engine::start(settings, network, events, true).unwrap()
}

/// The driver and its one package, installed once under `target/`.
fn driver(shots: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behaviour/peer");
    let folder = shots.join("driver");
    fs::create_dir_all(&folder).unwrap();
    for name in ["package.json", "page.mjs"] {
        fs::copy(source.join(name), folder.join(name)).unwrap();
    }
    if !folder.join("node_modules/playwright-core/package.json").exists() {
        let npm = Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"])
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(npm.status.success(), "npm: {}", String::from_utf8_lossy(&npm.stderr));
    }
    folder.join("page.mjs")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_keeps_its_promises_in_a_browser() {
    for command in ["node", "npm", "chromium"] {
        if !is_there(command) {
            println!("SKIPPED: {command} is not installed; scripts/test installs it");
            return;
        }
    }
    let shots = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peer-page");
    fs::create_dir_all(&shots).unwrap();
    fs::write(shots.join("hostile-name.txt"), HOSTILE).unwrap();
    let driver = driver(&shots);

    let world = World::default();
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("theirs");
    let own = folder.path().join("own");
    for dir in [&theirs, &own] {
        fs::create_dir_all(dir).unwrap();
    }
    let slow = Weather { loss: 0.0, per_second: 1_500_000, delay: Duration::from_millis(10) };
    let other = engine(&world, slow, &theirs);
    for (name, len) in [("titanic", 400_000), (HOSTILE, 70_000)] {
        fs::write(theirs.join(name), vec![7; len]).unwrap();
        other.share(&theirs.join(name), Visibility::Catalogue).await.unwrap();
    }
    fs::write(theirs.join("long film"), vec![9; 48 << 20]).unwrap();
    let (film, _) = other.share(&theirs.join("long film"), Visibility::Link).await.unwrap();
    fs::write(own.join("to share"), "mine").unwrap();
    fs::write(own.join("dropped"), "mine too").unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let codes = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&codes);
    let door = Door::new(address.port(), move |code| told.lock().unwrap().push(code.to_owned()));
    let backend = Arc::new(PageBackend(engine(&world, CALM, &own)));
    tokio::spawn(serve(listener, backend, Arc::new(door)));
    let link = format!("http://{address}/?code={}", codes.lock().unwrap()[0]);

    let film = film.link().to_string();
    let output = tokio::task::spawn_blocking(move || {
        Command::new("timeout")
            .args(["240", "node"])
            .arg(driver)
            .arg(link)
            .arg(&shots)
            .args([own.join("to share"), own.join("dropped")])
            .arg(film)
            .output()
            .unwrap()
    })
    .await
    .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(own_file(folder.path(), "titanic").is_file());
}

fn own_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("own/downloads").join(name)
}
