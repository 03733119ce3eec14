//! `cepa lan`: the devices behind this gateway.
//!
//! In: the gateway's table, leases. Out: a table; devices refused or let in; settings for dnsmasq
//! and hostapd. Called by: the command line.

use serde::Serialize;

use super::{
    ExitCode, Failure,
    output::{self, OutputFlags, say},
    settings_flags::SettingsFlags,
    table::{Table, bytes, seconds},
};
use crate::{
    capture::route,
    client::{
        gateway::Mac,
        inside_services::{self, Inside},
    },
    config::ClientConfig,
    node::gateway,
    telemetry::Device,
};

/// Arguments of `cepa lan`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Let a device send nothing any more
    Block(DeviceArgs),
    /// Let it send again
    Allow(DeviceArgs),
    /// Print settings for dnsmasq: addresses for the devices of the inside
    Dnsmasq(ServiceArgs),
    /// Print settings for hostapd: a Wi-Fi access point on the inside, with a new passphrase
    Hostapd(HostapdArgs),
}

#[derive(clap::Args)]
struct DeviceArgs {
    /// Its hardware address, as `cepa lan` lists it
    mac: Mac,
    #[command(flatten)]
    settings: SettingsFlags<ClientConfig>,
}

#[derive(clap::Args)]
struct ServiceArgs {
    #[command(flatten)]
    settings: SettingsFlags<ClientConfig>,
}

#[derive(clap::Args)]
struct HostapdArgs {
    /// The name of the Wi-Fi network
    #[arg(long, default_value = "cepa")]
    ssid: String,
    /// Where it is: two letters (ISO 3166), for the channels that may be used there
    #[arg(long, value_name = "CC")]
    country: String,
    #[command(flatten)]
    settings: SettingsFlags<ClientConfig>,
}

#[derive(Serialize)]
struct Answer {
    devices: Vec<Device>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.action {
            None => list(self.output),
            Some(Action::Block(args)) => refuse(&args, true),
            Some(Action::Allow(args)) => refuse(&args, false),
            Some(Action::Dnsmasq(args)) => {
                let inside = inside(&args.settings)?;
                output::print(format_args!("{}", inside_services::dnsmasq(&inside)));
                Ok(())
            }
            Some(Action::Hostapd(args)) => hostapd(&args),
        }
    }
}

fn list(flags: OutputFlags) -> anyhow::Result<()> {
    let devices = gateway::devices()?.ok_or_else(|| {
        Failure::new(
            ExitCode::Unreachable,
            "expected a gateway on this machine, got none; give the client an inside: \
             lan = [\"eth1\"] in /etc/cepa/client.toml",
        )
    })?;
    if flags.json {
        return output::print_json("lan", &Answer { devices });
    }
    if devices.is_empty() {
        say!("No device of the inside has sent anything yet.");
        return Ok(());
    }
    let mut table = Table::new(&["device", "name", "addresses", "up", "down", "last seen", ""]);
    for device in devices {
        table.row([
            device.mac,
            device.name.unwrap_or_else(|| "-".to_owned()),
            device.addresses.join(" "),
            bytes(device.bytes_up),
            bytes(device.bytes_down),
            device
                .quiet_s
                .map_or_else(|| "-".to_owned(), |quiet| format!("{} ago", seconds(quiet))),
            if device.denied { "blocked" } else { "" }.to_owned(),
        ]);
    }
    for line in table.lines() {
        say!("{line}");
    }
    Ok(())
}

fn refuse(args: &DeviceArgs, refused: bool) -> anyhow::Result<()> {
    let loaded = args.settings.load()?;
    gateway::refuse(&loaded.settings, args.mac, refused)?;
    if refused {
        say!("{} may not send any more. To let it: sudo cepa lan allow {}", args.mac, args.mac);
    } else {
        say!("{} may send.", args.mac);
    }
    Ok(())
}

/// The first interface of the inside, and its addresses.
fn inside(settings: &SettingsFlags<ClientConfig>) -> anyhow::Result<Inside> {
    let loaded = settings.load()?;
    let Some(name) = loaded.settings.lan.first() else {
        let text = "expected an inside, got none; set lan = [\"eth1\"] in /etc/cepa/client.toml";
        return Err(Failure::new(ExitCode::Usage, text).into());
    };
    let networks = route::networks_of(name)?;
    Inside::new(name, &networks).ok_or_else(|| {
        let text = format!(
            "expected an IPv4 address with a prefix of /8 to /29 on {name}, got none; give it one: \
             ip address add 192.168.77.1/24 dev {name}"
        );
        Failure::new(ExitCode::Failed, text).into()
    })
}

fn hostapd(args: &HostapdArgs) -> anyhow::Result<()> {
    let loaded = args.settings.load()?;
    let Some(name) = loaded.settings.lan.first() else {
        let text = "expected an inside, got none; set lan = [\"wlan0\"] in /etc/cepa/client.toml";
        return Err(Failure::new(ExitCode::Usage, text).into());
    };
    let passphrase = inside_services::passphrase(&mut rand::rng());
    let text = inside_services::hostapd(name, &args.ssid, &args.country, &passphrase)
        .map_err(|why| Failure::new(ExitCode::Usage, why))?;
    output::print(format_args!("{text}"));
    Ok(())
}
