//! `cepa controller token`: makes, lists and revokes the tokens that let nodes in.
//!
//! In: flags, the state directory. Out: the token once, lines or JSON.
//! Called by: `cepa controller`.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::{
    cli::{
        output::{OutputFlags, print_json, say},
        table::{Table, count, seconds},
    },
    config::Period,
    controller::{Administration, Settings, TokenRecord, TokenRole},
};

/// Arguments of `cepa controller token`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print a new single-use token; it is shown this once
    New(NewArgs),
    /// List the tokens, used and ended ones included, without their secrets
    List(ListArgs),
    /// Revoke an unused token
    Revoke(RevokeArgs),
}

#[derive(clap::Args)]
struct NewArgs {
    /// What its holder may be: node (relay or exit), tracker, or any
    #[arg(long, default_value = "node", value_name = "node|tracker|any")]
    role: TokenRole,
    /// How long it can be used
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    ttl: Period,
    /// A word to find it by, for example the name of the machine it is for
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Args)]
struct RevokeArgs {
    /// The token's id, as `cepa controller token list` shows it
    id: String,
    #[command(flatten)]
    output: OutputFlags,
}

/// One token, without its secret.
#[derive(Serialize)]
struct Token {
    id: String,
    role: TokenRole,
    label: Option<String>,
    state: &'static str,
    created: Timestamp,
    expires: Timestamp,
    used_by: Option<String>,
}

impl Token {
    fn of(record: &TokenRecord, now: Timestamp) -> Self {
        Self {
            id: record.id.to_string(),
            role: record.role,
            label: record.label.clone(),
            state: record.refusal(now).unwrap_or("unused"),
            created: record.created,
            expires: record.expires,
            used_by: record.used_by.map(|id| id.to_string()),
        }
    }
}

#[derive(Serialize)]
struct NewAnswer<'a> {
    token: &'a str,
    #[serde(flatten)]
    about: Token,
}

#[derive(Serialize)]
struct ListAnswer {
    tokens: Vec<Token>,
}

#[derive(Serialize)]
struct RevokeAnswer {
    revoked: String,
}

impl Args {
    pub(super) fn run(self, settings: &Settings) -> anyhow::Result<()> {
        let now = Timestamp::now();
        match self.command {
            Command::New(args) => new(settings, &args, now),
            Command::List(args) => list(settings, args.output, now),
            Command::Revoke(args) => {
                let mut admin = Administration::open_existing(settings)?;
                let revoked = admin.revoke_token(&args.id, now)?.to_string();
                if args.output.json {
                    return print_json("controller-token-revoke", &RevokeAnswer { revoked });
                }
                say!("revoked the token {revoked}");
                Ok(())
            }
        }
    }
}

fn new(settings: &Settings, args: &NewArgs, now: Timestamp) -> anyhow::Result<()> {
    let ttl = SignedDuration::try_from(args.ttl.get()).unwrap_or(SignedDuration::MAX);
    let label = args.label.as_deref();
    let mut admin = Administration::open(settings)?;
    let (token, record) = admin.new_token(args.role, ttl, label, now, &mut rand::rng())?;
    let text = token.reveal();
    if args.output.json {
        let about = Token::of(&record, now);
        return print_json("controller-token-new", &NewAnswer { token: &text, about });
    }
    // Alone on standard output, so that scripts can take it as it is.
    say!("{}", *text);
    Ok(())
}

fn list(settings: &Settings, output: OutputFlags, now: Timestamp) -> anyhow::Result<()> {
    let records = Administration::open_existing(settings)?.tokens()?;
    let tokens: Vec<Token> = records.iter().map(|record| Token::of(record, now)).collect();
    if output.json {
        return print_json("controller-token-list", &ListAnswer { tokens });
    }
    let mut table = Table::new(&["ID", "ROLE", "LABEL", "STATE", "ENDS", "USED BY"]);
    for token in &tokens {
        let left = token.expires.duration_since(now).as_secs();
        let ends = match u64::try_from(left) {
            Ok(left) if token.state == "unused" => format!("in {}", seconds(left)),
            _ => "-".to_owned(),
        };
        let used_by = token.used_by.as_deref().unwrap_or("-").chars().take(8).collect();
        let label = token.label.clone().unwrap_or_else(|| "-".to_owned());
        table.row([
            token.id.clone(),
            token.role.name().to_owned(),
            label,
            token.state.to_owned(),
            ends,
            used_by,
        ]);
    }
    table.lines().iter().for_each(|line| say!("{line}"));
    say!("{}", count(tokens.len(), "token"));
    Ok(())
}
