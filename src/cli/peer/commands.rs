//! `cepa peer share`, `get`, `ls` and `unshare`.
//!
//! In: arguments. Out: links, files, lists. Called by: `cepa peer`.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    GetArgs, LsArgs, ShareArgs,
    access::{Access, GetRequest, ShareRequest, Shared},
    progress::{Progress, log_line},
};
use crate::{
    cli::{
        ExitCode, Failure,
        output::{self, say},
        table::{Table, bytes},
    },
    config::{Loaded, PeerConfig},
    peer::{
        link::ShareLink,
        name::printable,
        view::{CatalogueView, DownloadState, DownloadView, ShareView},
    },
    telemetry::service_manager::stop_signal,
};

/// How often a running transfer is looked at.
const LOOK: Duration = Duration::from_millis(120);

#[derive(Serialize)]
struct SharedList<'a> {
    shares: &'a [Shared],
}

pub(super) async fn share(access: &Access, args: ShareArgs, json: bool) -> anyhow::Result<()> {
    let here = std::env::current_dir()?;
    let mut shared = Vec::new();
    for path in args.paths {
        let request = ShareRequest { path: here.join(path), public: args.public };
        let one = access.share(request).await?;
        if !json {
            say!("{} ({})", printable(&one.share.name), bytes(one.share.size));
            say!("  {}", one.share.link);
            if one.skipped > 0 {
                log_line(&format!("  left out: {} links or devices", one.skipped));
            }
        }
        shared.push(one);
    }
    if json {
        output::print_json("peer-share", &SharedList { shares: &shared })?;
    }
    match access {
        Access::Daemon(_) => Ok(()),
        Access::Own(own) => {
            if !json {
                log_line("Sharing until you press Ctrl-C.");
            }
            let mut said = 0;
            let ended = stop_signal();
            tokio::pin!(ended);
            loop {
                tokio::select! {
                    () = &mut ended => return Ok(()),
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
                let sent: u64 = own.engine.view().shares.iter().map(|share| share.sent).sum();
                if sent != said && !json {
                    said = sent;
                    log_line(&format!("{} sent", bytes(sent)));
                }
            }
        }
    }
}

/// Refuses a broken link, before a circuit is built for it.
pub(super) fn check_what(args: &GetArgs) -> anyhow::Result<()> {
    if ShareLink::is_meant(&args.what) {
        args.what
            .parse::<ShareLink>()
            .map_err(|error| Failure::new(ExitCode::Usage, error.to_string()))?;
    }
    Ok(())
}

pub(super) async fn get(
    access: &Access,
    loaded: &Loaded<PeerConfig>,
    args: GetArgs,
    json: bool,
) -> anyhow::Result<()> {
    if let (Access::Own(own), false) = (access, ShareLink::is_meant(&args.what)) {
        super::access::wait_for_tracker(&own.engine).await;
    }
    let to = match args.to {
        Some(dir) => Some(std::path::absolute(dir)?),
        None if loaded.settings.downloads.is_none() => Some(std::env::current_dir()?),
        None => None,
    };
    let id = access.get(GetRequest { what: args.what, to, via_code: args.via_code }).await?;
    let mut progress = Progress::new(json);
    let ended = stop_signal();
    tokio::pin!(ended);
    let mut last_have = (0, Instant::now());
    loop {
        let view = access.download(&id).await?;
        if matches!(view.state, DownloadState::Done | DownloadState::Failed | DownloadState::Paused)
        {
            progress.end(&view);
            return finished(&view, json);
        }
        progress.show(&view);
        if view.fetched != last_have.0 {
            last_have = (view.fetched, Instant::now());
        }
        let quiet = last_have.1.elapsed();
        if args.give_up.is_some_and(|seconds| quiet > Duration::from_secs(seconds)) {
            progress.end(&view);
            let why = view.reason.clone().unwrap_or_default();
            return Err(stopped(
                &view,
                &format!("nothing arrived for {} s: {why}", quiet.as_secs()),
            ));
        }
        tokio::select! {
            () = &mut ended => {
                progress.end(&view);
                return Err(stopped(&view, "stopped"));
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn stopped(view: &DownloadView, why: &str) -> anyhow::Error {
    let kept = format!(
        "{why}; {} of {} are kept, the same command goes on from there",
        bytes(view.have),
        bytes(view.size)
    );
    Failure::new(ExitCode::Failed, kept).into()
}

fn finished(view: &DownloadView, json: bool) -> anyhow::Result<()> {
    match view.state {
        DownloadState::Done => {
            if !json {
                say!("{}", printable(&view.path));
                if let Some(root) = &view.root {
                    log_line(&format!("{} verified, BLAKE3 {root}", bytes(view.size)));
                }
            }
            Ok(())
        }
        _ => {
            let why = view.reason.clone().unwrap_or_else(|| "it was paused".to_owned());
            Err(Failure::new(ExitCode::Failed, printable(&why)).into())
        }
    }
}

#[derive(Serialize)]
struct Listed {
    entries: Vec<CatalogueView>,
}

#[derive(Serialize)]
struct Mine {
    shares: Vec<ShareView>,
    downloads: Vec<DownloadView>,
}

pub(super) async fn ls(access: &Access, args: LsArgs, json: bool) -> anyhow::Result<()> {
    if args.mine {
        let view = access.view().await?;
        let is_meant = |name: &str| name.contains(&args.filter);
        let shares: Vec<_> = view.shares.into_iter().filter(|s| is_meant(&s.name)).collect();
        let downloads: Vec<_> = view.downloads.into_iter().filter(|d| is_meant(&d.name)).collect();
        if json {
            return output::print_json("peer-mine", &Mine { shares, downloads });
        }
        for share in &shares {
            let how = if share.is_listed { "in the catalogue" } else { "link only" };
            say!("{} ({}, {how})", printable(&share.name), bytes(share.size));
            say!("  {}", share.link);
        }
        for download in &downloads {
            let have = format!("{} of {}", bytes(download.have), bytes(download.size));
            say!("{} ({have}, {:?})", printable(&download.name), download.state);
        }
        return Ok(());
    }
    let entries = access.catalogue(&args.filter).await?;
    if json {
        return output::print_json("peer-ls", &Listed { entries });
    }
    if entries.is_empty() {
        log_line("The catalogue has no such name. Link shares are never listed.");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "SIZE", "SOURCES", "ID"]);
    for entry in entries {
        let sources = if entry.is_mine { "yours".to_owned() } else { entry.sources.to_string() };
        table.row([printable(&entry.name), bytes(entry.size), sources, entry.id]);
    }
    for line in table.lines() {
        say!("{line}");
    }
    Ok(())
}

pub(super) async fn unshare(access: &Access, what: &str) -> anyhow::Result<()> {
    let shares = access.view().await?.shares;
    let found: Vec<_> =
        shares.into_iter().filter(|share| share.name == what || share.id == what).collect();
    if found.is_empty() {
        let words =
            format!("expected the name or id of a share, got {what:?}; see: cepa peer ls --mine");
        return Err(Failure::new(ExitCode::Usage, words).into());
    }
    for share in found {
        access.unshare(share.id).await?;
        say!("{} is not shared any more", printable(&share.name));
    }
    Ok(())
}
