//! `cepa controller nodes`: lists the registered nodes, listed or not, and takes one out.
//!
//! In: flags, the state directory. Out: lines or JSON. Called by: `cepa controller`.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    cli::{
        output::{OutputFlags, print_json, say},
        table::{Table, count, seconds},
    },
    controller::{Administration, NodeRecord, Settings, TokenRole},
};

/// Arguments of `cepa controller nodes`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the registered nodes, revoked ones included
    List(ListArgs),
    /// Take a node out of the directory for good
    Revoke(RevokeArgs),
}

#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Args)]
struct RevokeArgs {
    /// Its name, its id, or the first 8 or more digits of its id
    node: String,
    #[command(flatten)]
    output: OutputFlags,
}

/// One node as the controller remembers it.
#[derive(Serialize)]
struct Node {
    id: String,
    name: String,
    label: Option<String>,
    allowed: TokenRole,
    admitted: Timestamp,
    last_seen: Timestamp,
    revoked: Option<Timestamp>,
}

impl From<&NodeRecord> for Node {
    fn from(record: &NodeRecord) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.name.clone(),
            label: record.label.clone(),
            allowed: record.allowed,
            admitted: record.admitted,
            last_seen: record.last_seen,
            revoked: record.revoked,
        }
    }
}

#[derive(Serialize)]
struct ListAnswer {
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct RevokeAnswer {
    revoked: Node,
}

impl Args {
    pub(super) fn run(self, settings: &Settings) -> anyhow::Result<()> {
        let now = Timestamp::now();
        match self.command {
            Command::List(args) => list(settings, args.output, now),
            Command::Revoke(args) => {
                let mut admin = Administration::open_existing(settings)?;
                let revoked = admin.revoke_node(&args.node, now)?;
                if args.output.json {
                    let revoked = Node::from(&revoked);
                    return print_json("controller-nodes-revoke", &RevokeAnswer { revoked });
                }
                say!("revoked the node {} ({})", revoked.name, revoked.id.short());
                Ok(())
            }
        }
    }
}

fn list(settings: &Settings, output: OutputFlags, now: Timestamp) -> anyhow::Result<()> {
    let records = Administration::open_existing(settings)?.nodes()?;
    if output.json {
        let nodes = records.iter().map(Node::from).collect();
        return print_json("controller-nodes-list", &ListAnswer { nodes });
    }
    let mut table = Table::new(&["NAME", "ID", "LABEL", "ALLOWED", "LAST SEEN", "STATE"]);
    for node in &records {
        let ago = u64::try_from(now.duration_since(node.last_seen).as_secs()).unwrap_or(0);
        let state = if node.revoked.is_some() { "revoked" } else { "registered" };
        table.row([
            node.name.clone(),
            node.id.short(),
            node.label.clone().unwrap_or_else(|| "-".to_owned()),
            node.allowed.name().to_owned(),
            format!("{} ago", seconds(ago)),
            state.to_owned(),
        ]);
    }
    table.lines().iter().for_each(|line| say!("{line}"));
    say!("{}; `cepa nodes` shows which of them are live", count(records.len(), "node"));
    Ok(())
}
