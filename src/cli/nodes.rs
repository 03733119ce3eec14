//! `cepa nodes`: asks the controller which nodes there are.
//!
//! In: the controller's link. Out: a table or JSON. Called by: the command line.
//!
//! The list comes from the signed directory; `show` asks for one node and checks what the
//! controller signed about it.

use std::net::SocketAddr;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    ExitCode, Failure, block_on,
    output::{OutputFlags, print_json, say},
    table::{Table, count, seconds},
};
use crate::{
    config::{ClientConfig, Loader, NodeConfig},
    directory::{ClientError, ControllerClient, ControllerLink, Directory, Member, NodeAnswer},
    model::{Role, Suite},
};

/// Arguments of `cepa nodes`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The controller's link [default: that of this machine's client or node]
    #[arg(long, value_name = "LINK", global = true, env = "CEPA_CONTROLLER", hide_env = true)]
    controller: Option<ControllerLink>,
    /// Only nodes of this role
    #[arg(long, value_name = "relay|exit|tracker")]
    role: Option<Role>,
    #[command(flatten)]
    output: OutputFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show all about one node
    Show(ShowArgs),
}

#[derive(clap::Args)]
struct ShowArgs {
    /// Its name, its id, or the first 8 or more digits of its id
    node: String,
}

/// One node of the directory.
#[derive(Serialize)]
struct Listed<'a> {
    id: String,
    name: &'a str,
    addrs: &'a [SocketAddr],
    roles: &'a [Role],
    operator: Option<&'a str>,
    exit_policy: Option<String>,
    suites: &'a [Suite],
}

impl<'a> Listed<'a> {
    fn of(member: &'a Member) -> Self {
        let descriptor = &member.descriptor;
        Self {
            id: member.id.to_string(),
            name: &descriptor.name,
            addrs: &descriptor.addrs,
            roles: &descriptor.roles,
            operator: descriptor.operator.as_deref(),
            exit_policy: member.is_exit().then(|| descriptor.exit_policy.to_string()),
            suites: &descriptor.suites,
        }
    }
}

#[derive(Serialize)]
struct ListAnswer<'a> {
    directory_version: u64,
    valid_until: Timestamp,
    nodes: Vec<Listed<'a>>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let link = match self.controller {
            Some(link) => link,
            None => link_from_settings()?,
        };
        block_on(async {
            let client = ControllerClient::new(&link, None)?;
            match self.command {
                None => list(&client, self.role, self.output).await,
                Some(Command::Show(args)) => show(&client, &args.node, self.output).await,
            }
        })
    }
}

/// The controller of this machine's client or node.
fn link_from_settings() -> anyhow::Result<ControllerLink> {
    let client = Loader::default().load::<ClientConfig>()?.settings.controller;
    let link = match client {
        Some(link) => Some(link),
        None => Loader::default().load::<NodeConfig>()?.settings.controller,
    };
    link.ok_or_else(|| {
        let text = "expected a controller link, got none: give --controller LINK (the controller \
                    prints it: cepa controller link), set CEPA_CONTROLLER, or set `controller` in \
                    /etc/cepa/client.toml";
        Failure::new(ExitCode::Usage, text).into()
    })
}

/// The directory as the controller signs it right now.
async fn fetch(client: &ControllerClient) -> anyhow::Result<Directory> {
    let signed = client.directory(None, false).await?.context("no directory in the answer")?;
    let pinned = client.link().fingerprint();
    Ok(Directory::open(&signed, &pinned, Timestamp::now(), None)?)
}

async fn list(
    client: &ControllerClient,
    role: Option<Role>,
    output: OutputFlags,
) -> anyhow::Result<()> {
    let directory = fetch(client).await?;
    let members: Vec<&Member> = directory
        .nodes()
        .iter()
        .filter(|member| role.is_none_or(|role| member.descriptor.has(role)))
        .collect();
    if output.json {
        let answer = ListAnswer {
            directory_version: directory.version(),
            valid_until: directory.valid_until(),
            nodes: members.into_iter().map(Listed::of).collect(),
        };
        return print_json("nodes", &answer);
    }
    let mut table = Table::new(&["NAME", "ID", "ADDRESS", "ROLES", "OPERATOR"]);
    for member in &members {
        table.row([
            member.descriptor.name.clone(),
            member.id.short(),
            member.addr().to_string(),
            words(&member.descriptor.roles),
            member.descriptor.operator.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.lines().iter().for_each(|line| say!("{line}"));
    say!("{}", count(members.len(), "live node"));
    Ok(())
}

async fn show(client: &ControllerClient, who: &str, output: OutputFlags) -> anyhow::Result<()> {
    let answer = match client.node(who).await {
        Err(ClientError::Refused { problem, .. }) if problem.status == 404 => {
            return Err(Failure::new(ExitCode::Failed, problem.detail).into());
        }
        other => other?,
    };
    check(client, &answer).await?;
    if output.json {
        return print_json("nodes-show", &answer);
    }
    let ago = Timestamp::now().duration_since(answer.last_seen).as_secs();
    say!("name         {}", answer.name);
    say!("id           {}", answer.id);
    say!("address      {}", SocketAddr::new(answer.public_ip, answer.port));
    say!("roles        {}", words(&answer.roles));
    if answer.roles.contains(&Role::Exit) {
        say!("exit policy  {}", answer.exit_policy);
    }
    say!("suites       {}", words(&answer.suites));
    say!("operator     {}", answer.operator.as_deref().unwrap_or("-"));
    say!("last seen    {} ago", seconds(u64::try_from(ago).unwrap_or(0)));
    say!("public key");
    answer.public_key.lines().for_each(|line| say!("{line}"));
    Ok(())
}

/// The controller must be the one of the link, or one that its key leads to.
async fn check(client: &ControllerClient, answer: &NodeAnswer) -> anyhow::Result<()> {
    let pinned = client.link().fingerprint();
    let entry = match answer.entry.verify(&pinned) {
        Ok(entry) => entry,
        Err(_) => answer.entry.verify(&fetch(client).await?.controller().id())?,
    };
    if entry.id != answer.id || entry.name != answer.name {
        let text = "expected the controller's entry to be about this node, got one about another";
        return Err(Failure::new(ExitCode::Failed, text).into());
    }
    Ok(())
}

fn words(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
