//! The source's own picture: sender, one node with two interfaces, receiver.
//!
//! In: the small network. Out: promises. Called by: rig::suite.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::rig::{
    daemons::Extra,
    promise::Evidence,
    scenario::{controller_gone, traffic},
    stage::Stage,
};

/// How long the directory of this scenario is valid.
const VALID: Duration = Duration::from_secs(12);

/// One hop, in a lab; and what happens when the directory expires.
pub fn sender_node_receiver(stage: &mut Stage<'_>) {
    stage.extra = Extra {
        controller: ["--valid-for", "12s", "--sign-every", "4s"].map(str::to_owned).to_vec(),
        ..Extra::default()
    };
    let up = stage.promise("controller and one node with two interfaces come up", |stage| {
        let extra = stage.extra.clone();
        stage.daemons.start_all(stage.network, &["node"], &extra)?;
        Ok(Evidence::new("one node, an exit, listed"))
    });
    if !up || !traffic::connect(stage, &["node"]) {
        return;
    }
    traffic::all_kinds(stage, "node");
    stage.promise(
        "without the controller, circuits are built until the directory expires",
        |stage| {
            if let Some(controller) = stage.daemons.controller.take() {
                ensure!(
                    controller.stop(),
                    "the controller had to be killed, or ended with an error"
                );
            }
            let stopped = Instant::now();
            controller_gone::new_circuit(stage)?;
            while stopped.elapsed() < VALID + Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(100));
            }
            // The spare that was built in time may still be taken; another one is not built.
            let _ = controller_gone::new_circuit(stage);
            std::thread::sleep(Duration::from_secs(2));
            let refusal = controller_gone::new_circuit(stage);
            ensure!(refusal.is_err(), "a circuit was built from an expired directory");
            Ok(Evidence::new(refusal.err().map(|error| error.to_string()).unwrap_or_default()))
        },
    );
}
