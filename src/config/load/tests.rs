//! The layers, their order, and what their errors say.

use super::*;
use crate::config::{Admission, Kind, Period};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn load_text<S: Settings>(text: &str) -> Result<Loaded<S>, ConfigError> {
    let folder = folder();
    fs::write(folder.path().join(format!("{}.toml", S::ROLE)), text).unwrap();
    Loader::default().etc(folder.path()).load()
}

fn says<S: Settings + fmt::Debug>(text: &str, needles: &[&str]) {
    let message = load_text::<S>(text).unwrap_err().to_string();
    for needle in needles {
        assert!(message.contains(needle), "{needle:?} is not in {message:?}");
    }
}

#[test]
fn nothing_given_gives_the_defaults() {
    let loaded = Loader::default().etc("/nonexistent").load::<ClientConfig>().unwrap();
    assert_eq!(loaded.settings.hops, 3);
    assert_eq!(loaded.origin("hops"), Origin::Default);
    assert!(loaded.files.is_empty());
}

#[test]
fn later_layers_win() {
    let folder = folder();
    let parts = folder.path().join("client.toml.d");
    fs::create_dir(&parts).unwrap();
    fs::write(folder.path().join("client.toml"), "hops = 3\ntun = \"a\"\nlog = \"error\"\n")
        .unwrap();
    fs::write(parts.join("10.toml"), "tun = \"b\"\nlog = \"warn\"\n").unwrap();
    fs::write(parts.join("20.toml"), "tun = \"c\"").unwrap();
    fs::write(parts.join("note.txt"), "not = \"read\"").unwrap();
    let variables = [("CEPA_HOPS", "4"), ("CEPA_LOG", "debug"), ("HOME", "/"), ("CEPA_TUN", "")];
    let loaded: Loaded<ClientConfig> = Loader::default()
        .etc(folder.path())
        .variables(variables.map(|(name, value)| (name.to_owned(), value.to_owned())))
        .flag("log", vec!["trace".to_owned()])
        .flag("route", vec!["0.0.0.0/0,::/0".to_owned(), "10.0.0.0/8".to_owned()])
        .load()
        .unwrap();
    assert_eq!(loaded.settings.tun, "c");
    assert_eq!(loaded.settings.hops, 4);
    assert_eq!(loaded.settings.log, "trace");
    assert_eq!(loaded.settings.route.len(), 3);
    assert_eq!(loaded.origin("tun"), Origin::File(parts.join("20.toml"), 1));
    assert_eq!(loaded.origin("hops"), Origin::Variable("CEPA_HOPS".to_owned()));
    assert_eq!(loaded.origin("log"), Origin::Flag("log".to_owned()));
    assert_eq!(loaded.files.len(), 3);
}

#[test]
fn a_secret_may_be_a_credential() {
    let link = "203.0.113.10:5000/6f1ed002ab5595859014ebf0951522d96f1ed002ab5595859014ebf0951522d9";
    let token = format!("cepa-join://{link}/0123456789abcdef/{}", "00".repeat(32));
    let folder = folder();
    let load = |variables: &[(&str, &str)]| {
        Loader::default()
            .etc("/nonexistent")
            .credentials(Some(folder.path().to_owned()))
            .variables(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
            .load::<NodeConfig>()
    };
    assert!(load(&[]).unwrap().settings.join.is_none(), "no file is no credential");
    fs::write(folder.path().join("join"), "").unwrap();
    assert!(load(&[]).unwrap().settings.join.is_none(), "an empty one neither");
    fs::write(folder.path().join("join"), format!("{token}\n")).unwrap();
    // Only secrets are taken from here.
    fs::write(folder.path().join("name"), "otter").unwrap();
    let loaded = load(&[]).unwrap();
    assert_eq!(loaded.settings.join.unwrap().reveal(), token);
    assert_eq!(loaded.origins["join"], Origin::Credential(folder.path().join("join")));
    assert!(loaded.settings.name.is_none());
    let other = token.replace("0123456789abcdef", "fedcba9876543210");
    let loaded = load(&[("CEPA_JOIN", &other)]).unwrap();
    assert_eq!(loaded.settings.join.unwrap().reveal(), other, "a variable wins");
    fs::write(folder.path().join("join"), "none of that").unwrap();
    let error = load(&[]).unwrap_err().to_string();
    assert!(error.contains("credential") && !error.contains("none of that"), "{error}");
}

#[test]
fn one_file_can_stand_for_all() {
    let folder = folder();
    fs::write(folder.path().join("node.toml"), "name = \"etc\"").unwrap();
    let own = folder.path().join("own.toml");
    let loader = Loader::default().etc(folder.path()).file(Some(own.clone()));
    let message = loader.load::<NodeConfig>().unwrap_err().to_string();
    assert!(message.contains("own.toml: cannot be read"), "{message}");
    fs::write(&own, "name = \"own\"").unwrap();
    let loaded = loader.load::<NodeConfig>().unwrap();
    assert_eq!(loaded.settings.name.as_deref(), Some("own"));
}

#[test]
fn an_unknown_key_names_line_and_nearest_key() {
    says::<ClientConfig>(
        "# a comment\nhops = 3\n\nroutes = []\n",
        &["client.toml:4", "unknown key \"routes\"", "did you mean \"route\"?"],
    );
    says::<NodeConfig>("exit-policy = \"\"", &["node.toml:1", "\"exit_policy\""]);
    says::<NodeConfig>("[exit]\npolicy = 1", &["node.toml:1", "exit: expected true or false"]);
    says::<ControllerConfig>("zzz = 1", &["controller has listen, public, state"]);
    let slip = Loader::default()
        .etc("/nonexistent")
        .variables([("CEPA_HOP".to_owned(), "4".to_owned())])
        .load::<ClientConfig>()
        .unwrap_err();
    assert!(slip.to_string().contains("did you mean CEPA_HOPS?"), "{slip}");
}

#[test]
fn variables_of_others_are_left_alone() {
    let variables = ["CEPA_ADMISSION", "CEPA_SOMETHING_ELSE"];
    let loader = Loader::default()
        .etc("/nonexistent")
        .variables(variables.map(|name| (name.to_owned(), "x".to_owned())));
    loader.load::<ClientConfig>().unwrap();
    assert!(loader.load::<ControllerConfig>().is_err());
}

#[test]
fn a_wrong_type_names_line_and_what_is_expected() {
    says::<ClientConfig>(
        "hops = \"3\"",
        &["client.toml:1", "hops: expected a whole number", "\"3\""],
    );
    says::<ClientConfig>("hops = 300", &["hops: expected a whole number from 0 to 255, got 300"]);
    says::<ClientConfig>(
        "\nroute = [\"10.0.0.0/8\", \"x\"]",
        &["client.toml:2", "such as 10.0.0.0/8", "\"x\""],
    );
    says::<NodeConfig>("listen = \"5000\"", &["listen: expected \"IP:PORT\"", "got \"5000\""]);
    says::<NodeConfig>(
        "controller = \"http://x\"",
        &["node.toml:1: controller: expected", "cepa://"],
    );
    says::<ControllerConfig>("valid_for = 24", &["a duration in quotes", "got 24"]);
    says::<NodeConfig>(
        "\n\nexit_policy = \"accept:10.0.0.1/8\"",
        &["node.toml:3: exit_policy: expected a prefix without bits", "write 10.0.0.0/8"],
    );
    says::<ControllerConfig>("admission = \"opne\"", &["expected \"token\" or \"open\""]);
    says::<NodeConfig>("name = \"a\"\nname = \"b\"", &["node.toml:2", "duplicate"]);
    says::<NodeConfig>("name = ", &["node.toml:1", "expected TOML"]);
}

#[test]
fn a_secret_is_not_shown() {
    for text in ["join = 12345", "join = \"12345\""] {
        let message = load_text::<NodeConfig>(text).unwrap_err().to_string();
        assert!(message.contains("node.toml:1: join: expected"), "{message}");
        assert!(!message.contains("12345"), "{message}");
    }
}

#[test]
fn ranges() {
    says::<ClientConfig>("hops = 0", &["client.toml:1: hops: expected 1 to 4 hops, got 0"]);
    says::<ClientConfig>(
        "lab = true\nhops = 5",
        &["client.toml:2: hops: expected 1 to 4 hops, got 5"],
    );
    says::<ClientConfig>("hops = 2", &["at least 3 hops, got 2", "--lab"]);
    says::<ClientConfig>("path = [\"a\", \"b\"]", &["path: expected at least 3 hops, got 2"]);
    says::<ClientConfig>("path = [\"a\", \"b\", \"a\"]", &["\"a\" twice"]);
    says::<NodeConfig>("also = [\"tracker\"]", &["also", "no such function"]);
    says::<NodeConfig>("name = \"two words\"", &["expected name to be 1 to 32 of a-z"]);
    says::<ControllerConfig>("metrics = \"0.0.0.0:9500\"", &["loopback"]);
    says::<ControllerConfig>(
        "valid_for = \"1m\"",
        &["valid_for: expected at least sign_every (10m)"],
    );
    assert_eq!(load_text::<ClientConfig>("lab = true\nhops = 1").unwrap().settings.hops, 1);
}

#[test]
fn a_missing_key_says_how_to_give_it() {
    let loaded = Loader::default().etc("/nonexistent").load::<NodeConfig>().unwrap();
    let none: Option<String> = None;
    let message = loaded.required("exit_interface", &none).unwrap_err().to_string();
    for needle in ["--exit-interface", "CEPA_EXIT_INTERFACE", "/nonexistent/node.toml"] {
        assert!(message.contains(needle), "{message}");
    }
}

#[test]
fn every_default_is_allowed_and_every_key_has_words() {
    fn check<S: Settings>() {
        S::default().check().unwrap();
        let fields = serde_json::to_value(S::default()).unwrap();
        assert_eq!(fields.as_object().unwrap().len(), S::KEYS.len());
        for key in S::KEYS {
            assert!(fields.get(key.name).is_some(), "{}", key.name);
            assert!(!key.help.is_empty() && !key.expects.is_empty(), "{}", key.name);
            assert_eq!(key.value_name.is_empty(), key.kind == Kind::Switch, "{}", key.name);
        }
    }
    check::<ControllerConfig>();
    check::<NodeConfig>();
    check::<ClientConfig>();
    assert_eq!(ControllerConfig::default().admission, Admission::Token);
    assert_eq!(ControllerConfig::default().valid_for, Period::from_hours(24));
}
