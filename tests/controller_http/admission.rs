//! Who gets in, who does not, and what each is told.

use std::time::Duration;

use cepa::{
    config::Admission,
    controller::TokenRole,
    directory::{ClientError, JoinToken, Problem, SignedDescriptor, TokenSecret},
    model::Role,
};
use jiff::{SignedDuration, Timestamp};

use crate::stage::{Node, Stage, descriptor, identity, unchecked_body};

async fn closed() -> Stage {
    Stage::with(|settings| settings.admission = Admission::Token).await
}

fn token(stage: &Stage, role: TokenRole) -> JoinToken {
    let ttl = SignedDuration::from_hours(1);
    let mut admin = stage.admin();
    admin.new_token(role, ttl, Some("otter"), Timestamp::now(), &mut rand::rng()).unwrap().0
}

fn not_admitted(answer: Result<impl std::fmt::Debug, ClientError>) -> Problem {
    match answer {
        Err(ClientError::NotAdmitted { problem }) => problem,
        other => panic!("expected not to be admitted, got {other:?}"),
    }
}

#[tokio::test]
async fn a_token_lets_one_node_in_once() {
    let stage = closed().await;
    let node = Node::join(&stage, 1).await;
    let problem = not_admitted(node.register(&stage, None).await);
    assert_eq!((problem.status, problem.field.as_deref()), (401, Some("join")));
    assert!(problem.detail.contains("cepa controller token new"), "{}", problem.detail);

    let token = token(&stage, TokenRole::Node);
    assert_eq!(token.link, stage.link, "a token carries address and fingerprint");
    let token: JoinToken = token.reveal().parse().unwrap();
    node.register(&stage, Some(&token)).await.unwrap();
    stage.wait_for(1).await;
    // It renews without the token, and with it as well.
    node.register(&stage, None).await.unwrap();
    node.register(&stage, Some(&token)).await.unwrap();

    let other = Node::join(&stage, 2).await;
    let problem = not_admitted(other.register(&stage, Some(&token)).await);
    assert!(problem.detail.contains("got one that is used"), "{}", problem.detail);
    let records = stage.admin().tokens().unwrap();
    assert_eq!(records[0].used_by, Some(identity(1).id()));
    assert_eq!(records[0].label.as_deref(), Some("otter"));
    assert_eq!(stage.admin().nodes().unwrap()[0].label.as_deref(), Some("otter"));
}

#[tokio::test]
async fn wrong_ended_and_revoked_tokens_are_refused() {
    let stage = closed().await;
    let node = Node::join(&stage, 1).await;
    let good = token(&stage, TokenRole::Node);
    let wrong = JoinToken { secret: TokenSecret::from_bytes([7; 32]), ..good.clone() };
    let problem = not_admitted(node.register(&stage, Some(&wrong)).await);
    assert!(problem.detail.contains("unknown or whose proof is wrong"), "{}", problem.detail);
    let elsewhere = JoinToken::generate(stage.link.clone(), &mut rand::rng());
    let same = not_admitted(node.register(&stage, Some(&elsewhere)).await);
    assert_eq!(same.detail, problem.detail, "unknown and wrong look alike");

    // The proof is for one descriptor.
    let (mine, changed) = (node.signed(), node.signed());
    let join = cepa::directory::JoinProof {
        token: good.id.to_string(),
        mac: good.secret.mac(&mine.bytes),
    };
    let registration = cepa::directory::Registration { signed: changed, join: Some(join) };
    assert_eq!(stage.post(serde_json::to_string(&registration).unwrap()).await.status, 401);

    let mut admin = stage.admin();
    admin.revoke_token(&good.id.to_string(), Timestamp::now()).unwrap();
    let problem = not_admitted(node.register(&stage, Some(&good)).await);
    assert!(problem.detail.contains("revoked"), "{}", problem.detail);

    let ttl = SignedDuration::from_secs(1);
    let now = Timestamp::now();
    let (short, _) = admin.new_token(TokenRole::Node, ttl, None, now, &mut rand::rng()).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let problem = not_admitted(node.register(&stage, Some(&short)).await);
    assert!(problem.detail.contains("expired"), "{}", problem.detail);
    assert!(stage.admin().nodes().unwrap().is_empty());
}

#[tokio::test]
async fn one_of_many_at_once_gets_the_token() {
    let stage = closed().await;
    let token = token(&stage, TokenRole::Node);
    let mut nodes = Vec::new();
    for index in 1..8 {
        nodes.push(Node::join(&stage, index).await);
    }
    let tries: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (client, signed, token) = (stage.client(), node.signed(), token.clone());
            tokio::spawn(async move { client.register(&signed, Some(&token)).await.is_ok() })
        })
        .collect();
    let mut admitted = 0;
    for attempt in tries {
        admitted += usize::from(attempt.await.unwrap());
    }
    assert_eq!(admitted, 1);
    assert_eq!(stage.admin().nodes().unwrap().len(), 1);
}

#[tokio::test]
async fn one_node_many_times_at_once_is_one_node() {
    let stage = Stage::open().await;
    let node = Node::join(&stage, 1).await;
    let tries: Vec<_> = (0..8)
        .map(|_| {
            let (client, signed) = (stage.client(), node.signed());
            tokio::spawn(async move { client.register(&signed, None).await })
        })
        .collect();
    let mut well = 0;
    for attempt in tries {
        match attempt.await.unwrap() {
            Ok(_) => well += 1,
            Err(ClientError::Refused { problem, .. }) => assert_eq!(problem.status, 409),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(well >= 1);
    assert_eq!(stage.admin().nodes().unwrap().len(), 1);
    stage.wait_for(1).await;
}

#[tokio::test]
async fn a_token_allows_its_roles_only() {
    let stage = closed().await;
    let tracker = {
        let mut said = descriptor(3, "127.0.0.1:5000".parse().unwrap());
        said.roles = vec![Role::Tracker];
        SignedDescriptor::sign(&said, identity(3)).unwrap()
    };
    let for_node = token(&stage, TokenRole::Node);
    let problem = not_admitted(stage.client().register(&tracker, Some(&for_node)).await);
    assert_eq!((problem.status, problem.field.as_deref()), (403, Some("roles")));
    let for_tracker = token(&stage, TokenRole::Tracker);
    stage.client().register(&tracker, Some(&for_tracker)).await.unwrap();
    // A refusal does not use the token up, and a later renewal cannot exceed it.
    let node = Node::join(&stage, 1).await;
    node.register(&stage, Some(&for_node)).await.unwrap();
    let mut more = node.descriptor();
    more.roles.push(Role::Tracker);
    let more = SignedDescriptor::sign(&more, identity(1)).unwrap();
    assert_eq!(not_admitted(stage.client().register(&more, None).await).status, 403);
}

#[tokio::test]
async fn a_name_belongs_to_one_node() {
    let stage = Stage::open().await;
    Node::join(&stage, 1).await.register(&stage, None).await.unwrap();
    let mut twin = descriptor(2, "127.0.0.1:5000".parse().unwrap());
    twin.name = "n1".to_owned();
    let signed = SignedDescriptor::sign(&twin, identity(2)).unwrap();
    let error = stage.client().register(&signed, None).await.unwrap_err();
    let ClientError::Refused { problem, .. } = error else { panic!("{error}") };
    assert_eq!((problem.status, problem.field.as_deref()), (409, Some("name")));
    assert!(problem.detail.contains("nodes revoke"), "{}", problem.detail);
    // A known node cannot take it either, but can take a free one.
    let node = Node::join(&stage, 2).await;
    node.register(&stage, None).await.unwrap();
    twin.valid_after = Timestamp::now();
    let signed = SignedDescriptor::sign(&twin, identity(2)).unwrap();
    assert!(stage.client().register(&signed, None).await.is_err());
    let mut renamed = node.descriptor();
    renamed.name = "free".to_owned();
    let signed = SignedDescriptor::sign(&renamed, identity(2)).unwrap();
    stage.client().register(&signed, None).await.unwrap();
    stage.wait_for(2).await;
    assert_eq!(stage.get("/nodes/free").await.status, 200);
    assert_eq!(stage.get("/nodes/n2").await.status, 404);
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let stage = Stage::open().await;
    type Change = fn(&mut serde_json::Value);
    let cases: &[(u16, &str, Change)] = &[
        (400, "name", |json| json["name"] = "Not A Name".into()),
        (400, "name", |json| drop(json.as_object_mut().unwrap().remove("name"))),
        (400, "addrs", |json| json["addrs"] = serde_json::json!([])),
        (400, "addrs", |json| json["addrs"] = serde_json::json!(["0.0.0.0:5000"])),
        (400, "onion_key_id", |json| json["onion_key_id"] = "AAAAAAAAAAA=".into()),
        (400, "roles", |json| json["roles"] = serde_json::json!(["oracle"])),
        (400, "suites", |json| json["suites"] = serde_json::json!([])),
        (400, "operator", |json| json["operator"] = "\u{1b}[2J".into()),
        (400, "wire_version", |json| json["wire_version"] = 9.into()),
        (400, "valid_until", |json| json["valid_until"] = json["valid_after"].clone()),
        (400, "descriptor", |json| json["addrs"] = "127.0.0.1:5000".into()),
        (400, "descriptor", |json| json["exit_policy"] = "accept everything".into()),
        (401, "signature", |json| json["spki"] = "AAAA".into()),
    ];
    for (status, field, change) in cases {
        let answer = stage.post(unchecked_body(1, change)).await;
        let problem = answer.problem();
        assert_eq!(
            (problem.status, problem.field.as_deref()),
            (*status, Some(*field)),
            "{problem:?}"
        );
    }
    let whole: serde_json::Value = serde_json::from_str(&unchecked_body(1, |_| ())).unwrap();
    let mut unsigned = whole.clone();
    unsigned.as_object_mut().unwrap().remove("signature");
    let problem = stage.post(unsigned.to_string()).await.problem();
    assert_eq!((problem.status, problem.field.as_deref()), (400, Some("signature")));
    let mut forged = whole.clone();
    let other: serde_json::Value = serde_json::from_str(&unchecked_body(2, |_| ())).unwrap();
    forged["signature"] = other["signature"].clone();
    let problem = stage.post(forged.to_string()).await.problem();
    assert_eq!((problem.status, problem.field.as_deref()), (401, Some("signature")));
    assert!(stage.admin().nodes().unwrap().is_empty());
    assert_eq!(stage.post(whole.to_string()).await.status, 201);
}

#[tokio::test]
async fn a_clock_that_is_off_by_a_day_is_named() {
    let stage = Stage::open().await;
    for hours in [-24, 24] {
        let moved = Timestamp::now() + SignedDuration::from_hours(hours);
        let mut said = descriptor(1, "127.0.0.1:5000".parse().unwrap());
        said.valid_after = moved;
        said.valid_until = moved + SignedDuration::from_hours(7 * 24);
        let signed = SignedDescriptor::sign(&said, identity(1)).unwrap();
        let error = stage.client().register(&signed, None).await.unwrap_err();
        let ClientError::Refused { problem, .. } = error else { panic!("{error}") };
        assert_eq!((problem.status, problem.field.as_deref()), (400, Some("valid_after")));
        assert!(problem.detail.contains("timedatectl"), "{}", problem.detail);
    }
    for hours in [23, 24 * 40] {
        let mut said = descriptor(1, "127.0.0.1:5000".parse().unwrap());
        said.valid_until = said.valid_after + SignedDuration::from_hours(hours);
        let signed = SignedDescriptor::sign(&said, identity(1)).unwrap();
        let error = stage.client().register(&signed, None).await.unwrap_err();
        let ClientError::Refused { problem, .. } = error else { panic!("{error}") };
        assert_eq!((problem.status, problem.field.as_deref()), (400, Some("valid_until")));
    }
}

#[tokio::test]
async fn replayed_and_older_descriptors_are_no_sign_of_life() {
    let stage = Stage::with(|settings| settings.down_after = Duration::from_secs(1)).await;
    let node = Node::join(&stage, 1).await;
    let older = node.signed();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let newer = node.signed();
    let client = stage.client();
    client.register(&newer, None).await.unwrap();
    stage.wait_for(1).await;
    let error = client.register(&older, None).await.unwrap_err();
    let ClientError::Refused { problem, .. } = error else { panic!("{error}") };
    assert_eq!((problem.status, problem.field.as_deref()), (409, Some("valid_after")));
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        client.register(&newer, None).await.unwrap();
    }
    assert!(stage.directory().await.nodes().is_empty());
}

#[tokio::test]
async fn a_full_controller_keeps_its_nodes() {
    let stage = Stage::with(|settings| settings.limits.nodes = 1).await;
    let node = Node::join(&stage, 1).await;
    node.register(&stage, None).await.unwrap();
    let other = Node::join(&stage, 2).await;
    let error = other.register(&stage, None).await.unwrap_err();
    assert!(error.is_temporary(), "{error}");
    node.register(&stage, None).await.unwrap();
}
