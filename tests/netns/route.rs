//! Interfaces, addresses and routes, as the kernel of an empty namespace has them.

use std::net::IpAddr;

use cepa::capture::route::{self, Way};

use crate::{cable, namespaces};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn routes_are_found_made_and_removed() {
    let Some([here, there]) = namespaces::<2>() else { return };
    cable(
        (&here, "a", &["192.0.2.1/24", "2001:db8:7::1/64"]),
        (&there, "b", &["192.0.2.2/24", "2001:db8:7::2/64"]),
    );
    here.run(|| {
        let a = route::interface("a").unwrap();
        assert!(a.up && !a.loopback);
        let lo = route::interface("lo").unwrap();
        assert!(lo.loopback);
        assert!(route::interface("zz").unwrap_err().to_string().contains("zz"));
        assert!(route::addresses().unwrap().contains(&(a.index, ip("192.0.2.1"))));
        assert!(route::addresses().unwrap().contains(&(a.index, ip("2001:db8:7::1"))));

        assert_eq!(route::default_interface().unwrap(), None);
        assert!(route::way_to(ip("198.51.100.9")).is_err());
        for (network, router, far) in
            [("0.0.0.0", "192.0.2.2", "198.51.100.9"), ("::", "2001:db8:7::2", "2001:db8:9::9")]
        {
            let way = Way { interface: a.index, gateway: Some(ip(router)), source: None };
            route::add_route(ip(network), 0, &way).unwrap();
            route::add_route(ip(network), 0, &way).unwrap();
            let found = route::way_to(ip(far)).unwrap();
            assert_eq!((found.interface, found.gateway), (a.index, Some(ip(router))));
            assert_eq!(route::default_interface().unwrap().unwrap().name, "a");
            let routes = route::routes().unwrap();
            let made =
                routes.iter().find(|route| route.prefix == 0 && route.network == ip(network));
            let made = made.unwrap();
            assert!(made.ours && made.way.gateway == Some(ip(router)), "{made:?}");
            assert!(routes.iter().any(|route| !route.ours && route.way.interface == a.index));
            route::remove_route(ip(network), 0, &way).unwrap();
            route::remove_route(ip(network), 0, &way).unwrap();
            assert!(route::way_to(ip(far)).is_err());
        }

        let way = Way { interface: a.index, gateway: None, source: None };
        route::add_route(ip("203.0.113.0"), 24, &way).unwrap();
        route::add_route(ip("2001:db8:1::"), 64, &way).unwrap();
        assert_eq!(route::way_to(ip("2001:db8:1::2")).unwrap().interface, a.index);
        route::add_block(ip("203.0.113.0"), 24).unwrap();
        route::add_block(ip("203.0.113.0"), 24).unwrap();
        route::add_block(ip("2001:db8:1::"), 64).unwrap();
        assert_eq!(route::way_to(ip("203.0.113.2")).unwrap().interface, a.index);
        assert_eq!(route::remove_ours().unwrap(), 4);
        assert!(route::way_to(ip("203.0.113.2")).is_err());
    })
    .unwrap();
}

#[test]
fn addresses_are_added() {
    let Some([netns]) = namespaces::<1>() else { return };
    netns
        .run(|| {
            let lo = route::interface("lo").unwrap();
            route::bring_up(lo.index, 65_536, 1000).unwrap();
            route::add_address(lo.index, ip("10.1.2.3"), 32).unwrap();
            route::add_address(lo.index, ip("fd12::3"), 128).unwrap();
            let addresses = route::addresses().unwrap();
            assert!(addresses.contains(&(lo.index, ip("10.1.2.3"))));
            assert!(addresses.contains(&(lo.index, ip("fd12::3"))));
            assert!(route::interface("lo").unwrap().up);
        })
        .unwrap();
}
