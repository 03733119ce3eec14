//! Real programs through the proxy: the same bytes as without it.

use std::process::{Command, Output};

use crate::{
    servers::{self, loaded, pattern, repositories},
    stage::{HTTP, SOCKS, Stage},
};

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

pub(crate) fn all(stage: &Stage) {
    curl(stage);
    git(stage);
    chromium(stage);
}

fn curl(stage: &Stage) {
    let url = format!("http://web.example:{}/r/49", servers::WEB);
    let direct = format!("http://{}:{}/r/49", servers::V4, servers::WEB);
    let without = run(stage.on("n4").args(["curl", "-sS", "-m", "20", &direct])).stdout;
    assert!(without == pattern(1000 + 49 * 997));
    let ways: [&[&str]; 3] =
        [&["--socks5-hostname", SOCKS], &["--proxy", HTTP], &["--proxytunnel", "--proxy", HTTP]];
    for way in ways {
        let with =
            run(stage.on("sender").args(["curl", "-sS", "-m", "20"]).args(way).arg(&url)).stdout;
        assert!(with == without, "{way:?}");
    }
}

fn git(stage: &Stage) {
    let home = repositories();
    let _ = std::fs::remove_dir_all(&home);
    let work = home.join("work");
    std::fs::create_dir_all(&work).unwrap();
    let git = |words: &[&str]| {
        run(Command::new("git")
            .current_dir(&work)
            .args(["-c", "user.name=a", "-c", "user.email=a@example.org"])
            .args(words));
    };
    git(&["init", "-q", "-b", "main"]);
    for number in 0..20 {
        std::fs::write(work.join(format!("file{number}")), pattern(5000 + number)).unwrap();
        git(&["add", "."]);
        git(&["commit", "-q", "-m", &format!("file {number}")]);
    }
    git(&["clone", "-q", "--bare", ".", "../one.git"]);
    run(Command::new("git").current_dir(home.join("one.git")).arg("update-server-info"));
    let url = format!("http://web.example:{}/git/one.git", servers::WEB);
    let clone = home.join("clone");
    run(stage
        .on("sender")
        .args(["git", "-c", &format!("http.proxy=socks5h://{SOCKS}"), "clone", "-q", &url])
        .arg(&clone));
    let head = |dir: &std::path::Path| {
        run(Command::new("git").current_dir(dir).args(["rev-parse", "HEAD"])).stdout
    };
    assert_eq!(head(&clone), head(&work));
    run(Command::new("git").current_dir(&clone).args(["fsck", "--strict"]));
    let _ = std::fs::remove_dir_all(&home);
}

/// A page that loads fifty resources and tells the length and a hash of each.
fn chromium(stage: &Stage) {
    let profile = tempfile::tempdir().unwrap();
    let output = run(stage
        .on("sender")
        .args(["timeout", "60", "chromium", "--headless", "--no-sandbox", "--disable-gpu"])
        .args(["--disable-dev-shm-usage", "--virtual-time-budget=30000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--proxy-server=socks5://{SOCKS}"))
        .arg(format!("http://web.example:{}/", servers::WEB)));
    let dom = String::from_utf8_lossy(&output.stdout);
    let out = dom.split("<pre id=\"out\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    assert_eq!(out, Some(loaded().as_str()), "{dom}");
}
