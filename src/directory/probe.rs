//! Signing and checking reachability probes.
//!
//! In: the controller's key and a nonce, or a probe from outside. Out: a probe, or a decision.
//! Called by: controller (signs), node (checks before it answers).

use jiff::Timestamp;

use super::{CLOCK_TOLERANCE, DirectoryError};
use crate::{
    keys::{Identity, PublicIdentity},
    model::NodeId,
    wire::Probe,
};

/// Makes a probe for `node`.
///
/// # Errors
/// When it cannot be signed.
pub fn sign_probe(
    controller: &Identity,
    node: NodeId,
    nonce: [u8; 32],
    now: Timestamp,
) -> Result<Probe, DirectoryError> {
    let failed = |cause| DirectoryError::Signature { document: "probe", cause };
    let issued = u64::try_from(now.as_second()).unwrap_or(0);
    let made = controller.sign(&Probe::signed_bytes(&nonce, &node, issued)).map_err(failed)?;
    let signature = made.try_into().map_err(|made: Vec<u8>| DirectoryError::Malformed {
        expected: "a signature of 384 bytes",
        got: made.len().to_string(),
    })?;
    Ok(Probe { nonce, node, issued, signature })
}

/// Whether a node may answer this probe: it is meant, in time, and its controller asks. Cheap
/// checks come first; callers limit the rate before they call.
///
/// # Errors
/// Why it must not answer.
pub fn check_probe(
    probe: &Probe,
    own: &NodeId,
    controller: &PublicIdentity,
    now: Timestamp,
) -> Result<(), DirectoryError> {
    if probe.node != *own {
        return Err(DirectoryError::Field {
            field: "node",
            expected: own.short(),
            got: probe.node.short(),
        });
    }
    let age = i128::from(now.as_second()) - i128::from(probe.issued);
    if age.unsigned_abs() > u128::from(CLOCK_TOLERANCE.as_secs().unsigned_abs()) {
        return Err(DirectoryError::Field {
            field: "issued",
            expected: "within 10 minutes of this machine's clock".to_owned(),
            got: format!("{age} s ago"),
        });
    }
    controller
        .verify(&Probe::signed_bytes(&probe.nonce, &probe.node, probe.issued), &probe.signature)
        .map_err(|cause| DirectoryError::Signature { document: "probe", cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::test_keys::identity;

    #[test]
    fn only_ones_own_controller_may_ask_for_oneself_in_time() {
        let now: Timestamp = "2025-01-01T00:00:00Z".parse().unwrap();
        let later = "2025-01-01T00:11:00Z".parse().unwrap();
        let own = identity(1).id();
        let controller = identity(0).public();
        let probe = sign_probe(identity(0), own, [7; 32], now).unwrap();
        check_probe(&probe, &own, controller, now).unwrap();
        assert!(check_probe(&probe, &identity(2).id(), controller, now).is_err());
        assert!(check_probe(&probe, &own, identity(2).public(), now).is_err());
        assert!(check_probe(&probe, &own, controller, later).is_err());
        let changed = Probe { issued: probe.issued + 1, ..probe.clone() };
        assert!(check_probe(&changed, &own, controller, now).is_err());
        let far = Probe { issued: u64::MAX, ..probe };
        assert!(check_probe(&far, &own, controller, now).is_err());
    }
}
