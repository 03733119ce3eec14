//! What the operator does with the state directory, whether or not the controller runs.
//!
//! In: settings and a command. Out: a changed database, which a running controller notices.
//! Called by: cli.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt,
    path::Path,
};

use jiff::{SignedDuration, Timestamp};
use rand::Rng;

use super::{
    ControllerError, keyring,
    settings::Settings,
    sqlite::Database,
    store::{NodeRecord, TokenRecord, TokenRole},
};
use crate::{
    directory::{ControllerLink, DirectoryError, JoinToken, TokenId, is_label},
    keys::StateDir,
    model::NodeId,
};

/// How long those who know the old key of the controller can follow to the new one, by default.
pub const KEY_OVERLAP: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The state of a controller, opened for administration.
#[derive(Debug)]
pub struct Administration {
    dir: StateDir,
    database: Database,
    public: Option<String>,
    listen: SocketAddr,
}

impl Administration {
    /// Opens the state, and makes it and the key if nothing was set up there yet.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn open(settings: &Settings) -> Result<Self, ControllerError> {
        let dir = StateDir::open(&settings.state)?;
        Self::of(dir, settings)
    }

    /// Opens the state, which must be there.
    ///
    /// # Errors
    /// [`ControllerError::NoState`], or why it cannot be used.
    pub fn open_existing(settings: &Settings) -> Result<Self, ControllerError> {
        let path = &settings.state;
        let nothing = !path.join(super::sqlite::DATABASE).exists()
            && (!path.exists() || keyring::key_files(path)?.is_empty());
        if nothing {
            return Err(ControllerError::NoState { path: path.clone() });
        }
        Self::of(StateDir::open_existing(path)?, settings)
    }

    fn of(dir: StateDir, settings: &Settings) -> Result<Self, ControllerError> {
        check_owner(dir.path())?;
        let database = Database::open(&dir)?;
        Ok(Self { dir, database, public: settings.public.clone(), listen: settings.listen })
    }

    /// What nodes and clients are given.
    ///
    /// # Errors
    /// Why the key cannot be used.
    pub fn link(&mut self) -> Result<ControllerLink, ControllerError> {
        let id = keyring::current(&self.dir, &mut self.database)?.id();
        self.link_for(id)
    }

    /// The address is the configured public one, or else the one that the controller was last
    /// started with, whatever flags it had.
    fn link_for(&self, id: NodeId) -> Result<ControllerLink, ControllerError> {
        let remembered = self.database.authority()?;
        link_to(self.public.as_deref().or(remembered.as_deref()), self.listen, id)
    }

    /// Makes a single-use token.
    ///
    /// # Errors
    /// A wrong label or time, or why it cannot be kept.
    pub fn new_token(
        &mut self,
        role: TokenRole,
        ttl: SignedDuration,
        label: Option<&str>,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> Result<(JoinToken, TokenRecord), ControllerError> {
        if let Some(label) = label
            && !is_label(label)
        {
            return Err(ControllerError::Setting {
                setting: "label",
                expected: "to be 1 to 64 printable ASCII characters",
                got: format!("{label:?}"),
            });
        }
        let wrong_ttl = || ControllerError::Setting {
            setting: "ttl",
            expected: "to be 1s to 365d",
            got: format!("{ttl:#}"),
        };
        if ttl < SignedDuration::from_secs(1) || ttl > SignedDuration::from_hours(365 * 24) {
            return Err(wrong_ttl());
        }
        let token = JoinToken::generate(self.link()?, rng);
        let record = TokenRecord {
            id: token.id,
            secret: Some(token.secret.clone()),
            role,
            label: label.map(str::to_owned),
            created: now,
            expires: now.saturating_add(ttl).map_err(|_| wrong_ttl())?,
            used_by: None,
            revoked: None,
        };
        self.database.add_token(&record)?;
        Ok((token, record))
    }

    /// All tokens, the oldest first; used and ended ones included, without their secrets.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, ControllerError> {
        self.database.tokens()
    }

    /// Revokes an unused token.
    ///
    /// # Errors
    /// [`ControllerError::Unknown`] when there is no unused one of that id.
    pub fn revoke_token(&mut self, id: &str, now: Timestamp) -> Result<TokenId, ControllerError> {
        let unknown = || ControllerError::Unknown {
            what: "the id of an unused token",
            got: id.chars().take(80).collect(),
            list: "token",
        };
        let id: TokenId = id.parse().map_err(|_| unknown())?;
        if self.database.revoke_token(id, now)? { Ok(id) } else { Err(unknown()) }
    }

    /// All nodes, revoked ones included, by name.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn nodes(&self) -> Result<Vec<NodeRecord>, ControllerError> {
        self.database.nodes()
    }

    /// Takes a node out, by name, id, or the first 8 or more digits of the id.
    ///
    /// # Errors
    /// [`ControllerError::Unknown`] when that is no node, or several.
    pub fn revoke_node(
        &mut self,
        who: &str,
        now: Timestamp,
    ) -> Result<NodeRecord, ControllerError> {
        let fits = |node: &NodeRecord| {
            let id = node.id.to_string();
            node.revoked.is_none()
                && (node.name == who || id == who || (who.len() >= 8 && id.starts_with(who)))
        };
        let mut found: Vec<NodeRecord> = self.nodes()?.into_iter().filter(fits).collect();
        if let (1, Some(mut node)) = (found.len(), found.pop())
            && self.database.revoke_node(node.id, now)?
        {
            node.revoked = Some(now);
            return Ok(node);
        }
        Err(ControllerError::Unknown {
            what: "the name or id of one registered node",
            got: who.chars().take(80).collect(),
            list: "nodes",
        })
    }

    /// Gives the controller a new key, signed by the old one; returns the new link.
    ///
    /// # Errors
    /// Why the key stays as it is.
    pub fn rotate_key(
        &mut self,
        now: Timestamp,
        overlap: SignedDuration,
    ) -> Result<ControllerLink, ControllerError> {
        let identity = keyring::rotate(&self.dir, &mut self.database, now, overlap)?;
        self.link_for(identity.id())
    }
}

/// Makes an empty database for a key whose database was lost; returns its fingerprint.
///
/// # Errors
/// [`ControllerError::CannotAdopt`] when that is not the state of things.
pub fn adopt_key(settings: &Settings) -> Result<NodeId, ControllerError> {
    let dir = StateDir::open_existing(&settings.state)?;
    check_owner(dir.path())?;
    Ok(keyring::adopt(&dir)?.id())
}

/// Files made by another user could not be read by the daemon.
fn check_owner(path: &Path) -> Result<(), ControllerError> {
    let failed = |cause| ControllerError::Io { action: "read the state directory", cause };
    let owner = std::fs::metadata(path).map_err(failed)?.uid();
    let own = std::fs::metadata("/proc/self").map_err(failed)?.uid();
    if owner == own {
        return Ok(());
    }
    Err(ControllerError::NotOwner { path: path.to_owned(), owner, own })
}

/// The link to a controller that listens at `listen`: the public address if one is set, and this
/// machine's own where the listener is unspecific.
pub(crate) fn link_to(
    public: Option<&str>,
    listen: SocketAddr,
    id: NodeId,
) -> Result<ControllerLink, ControllerError> {
    if let Some(public) = public {
        return Ok(format!("cepa://{public}/{id}").parse::<ControllerLink>()?);
    }
    let ip = if listen.ip().is_unspecified() { own_address(listen.ip()) } else { listen.ip() };
    let link: Result<_, DirectoryError> = ControllerLink::new(&ip.to_string(), listen.port(), id);
    Ok(link?)
}

/// The address that this machine sends from. Connecting a UDP socket sends nothing.
fn own_address(any: IpAddr) -> IpAddr {
    let far: SocketAddr = match any {
        IpAddr::V4(_) => (Ipv4Addr::new(192, 0, 2, 1), 9).into(),
        IpAddr::V6(_) => (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into(),
    };
    let found = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(far)?;
        socket.local_addr()
    });
    let loopback = match any {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    found.map_or(loopback, |addr| addr.ip())
}
