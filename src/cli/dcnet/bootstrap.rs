//! `cepa dcnet config`: makes the files of a group.
//!
//! In: counts, the relay's place, settings, perhaps a seed. Out: the configuration directory.
//! Called by: `cepa dcnet`.

use anyhow::{Context, bail};
use rand::{SeedableRng, rngs::StdRng};

use super::ConfigArgs;
use crate::{
    cli::output,
    dcnet::{ceremony, group::Settings, hash, store},
};

pub(super) fn config(args: &ConfigArgs) -> anyhow::Result<()> {
    let (host, port) = args
        .relay
        .rsplit_once(':')
        .with_context(|| format!("--relay: expected HOST:PORT, got {:?}", args.relay))?;
    let port = port
        .parse()
        .with_context(|| format!("--relay: expected a port from 1 to 65535, got {port:?}"))?;
    if args.output_dir.join("system.json").exists() && !args.force {
        bail!(
            "{} holds a group already; --force replaces its keys for good",
            args.output_dir.display()
        );
    }
    let plan = ceremony::Plan {
        clients: args.clients,
        trustees: args.trustees,
        host: host.to_owned(),
        port,
        settings: Settings {
            cell_size: args.cell_size,
            client_window: args.client_window,
            trustee_window: args.trustee_window,
            // A group of one has no set to speak of, and is good for a first try only.
            min_anonymity_set: args
                .min_anonymity_set
                .unwrap_or_else(|| args.clients.div_ceil(2).max(2).min(args.clients)),
            removals_per_hour: args.removals_per_hour,
        },
    };
    let files = match &args.seed {
        Some(seed) => {
            log::warn!("--seed: whoever knows the seed knows every key; for tests only");
            let seed = hash::hash("configuration seed", &[seed.as_bytes()]);
            ceremony::generate(&plan, &mut StdRng::from_seed(seed))?
        }
        None => ceremony::generate(&plan, &mut rand::rng())?,
    };
    if args.force {
        remove_old(&args.output_dir)?;
    }
    store::save_all(&args.output_dir, &files)?;
    output::print(format_args!(
        "Generated configs for {} clients, {} trustees in {}\n",
        args.clients,
        args.trustees,
        args.output_dir.display()
    ));
    Ok(())
}

/// Removes the private files of the group before, and nothing that is not a group's.
fn remove_old(dir: &std::path::Path) -> anyhow::Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let is_party = name.is_some_and(|name| {
            name.ends_with(".json")
                && name.len() >= 69
                && name.bytes().take(64).all(|byte| byte.is_ascii_hexdigit())
        });
        if is_party {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
