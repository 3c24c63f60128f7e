//! What may be fetched: the door between buyers' URLs and the network this process stands in.
//!
//! A URL is judged twice. [`Guard::check_url`] judges what can be read off it, with no network:
//! scheme, user info, port, and a host that is an address. [`Guard::check_address`] judges each
//! address that a name resolves to. Both are asked on every hop, and the connection is made to the
//! very addresses that were judged.
//!
//! Not here: resolving and connecting, which is [`super::fetch`].

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnet::IpNet;
use url::{Host, Url};

/// Longest URL: what browsers and proxies agree on.
pub(super) const URL_CHARS_MAX: usize = 2_048;

/// Every network that is not the public internet, and why. The first row that holds an address
/// names the reason, so narrow rows stand above wide ones.
const DENIED: &[(&str, &str)] = &[
    // IPv4: IANA special-purpose registry, plus what clouds have put elsewhere.
    ("0.0.0.0/8", "an unspecified address"),
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "a carrier-grade NAT address"),
    ("127.0.0.0/8", "a loopback address"),
    ("168.63.129.16/32", "a cloud metadata address"),
    ("169.254.169.254/32", "a cloud metadata address"),
    ("169.254.0.0/16", "a link-local address"),
    ("172.16.0.0/12", "a private address"),
    ("192.0.0.0/24", "a protocol assignment"),
    ("192.0.2.0/24", "a documentation address"),
    ("192.31.196.0/24", "an AS112 address"),
    ("192.52.193.0/24", "a multicast relay address"),
    ("192.88.99.0/24", "a 6to4 relay address"),
    ("192.168.0.0/16", "a private address"),
    ("192.175.48.0/24", "an AS112 address"),
    ("198.18.0.0/15", "a benchmarking address"),
    ("198.51.100.0/24", "a documentation address"),
    ("203.0.113.0/24", "a documentation address"),
    ("224.0.0.0/4", "a multicast address"),
    ("255.255.255.255/32", "the broadcast address"),
    ("240.0.0.0/4", "a reserved address"),
    // IPv6, special rows first.
    ("::/128", "an unspecified address"),
    ("::1/128", "a loopback address"),
    ("::ffff:0:0/96", "an IPv4-mapped address"),
    ("::ffff:0:0:0/96", "an IPv4-translated address"),
    ("::/96", "an IPv4-compatible address"),
    ("64:ff9b::/96", "a NAT64 address"),
    ("64:ff9b:1::/48", "a NAT64 address"),
    ("100::/64", "a discard address"),
    ("2001::/32", "a Teredo address"),
    ("2001:2::/48", "a benchmarking address"),
    ("2001::/23", "a protocol assignment"),
    ("2001:db8::/32", "a documentation address"),
    ("2002::/16", "a 6to4 address"),
    ("2620:4f:8000::/48", "an AS112 address"),
    ("3fff::/20", "a documentation address"),
    ("fd00:ec2::254/128", "a cloud metadata address"),
    ("fc00::/7", "a unique local address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a site-local address"),
    ("ff00::/8", "a multicast address"),
    // Whatever is left outside 2000::/3 is not assigned to anyone.
    ("::/3", "a reserved address"),
    ("4000::/2", "a reserved address"),
    ("8000::/1", "a reserved address"),
];

static DENIED_NETWORKS: LazyLock<Vec<(IpNet, &str)>> = LazyLock::new(|| {
    let parse = |(network, reason): &(&str, &'static str)| {
        let network = network.parse().expect("a literal of the table above, which a test walks");
        (network, *reason)
    };
    DENIED.iter().map(parse).collect()
});

/// What a deployment lets packs reach beyond the public internet on ports 80 and 443.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Lets loopback addresses (127.0.0.0/8 and ::1, no others) be fetched, on any port. For
    /// development and tests; never in production.
    pub allow_loopback: bool,
    /// Ports of public addresses besides 80 and 443.
    pub extra_ports: Vec<u16>,
}

/// Why a URL or address may not be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// Neither http nor https.
    Scheme,
    /// A name or password stands before the host.
    UserInfo,
    /// No host, or an empty one.
    Host,
    /// A port that is not open to packs.
    Port(u16),
    /// Not a public address; the text says what it is.
    Address(&'static str),
}

impl Denial {
    /// What is wrong and what would be right.
    pub(super) fn detail(self) -> String {
        match self {
            Self::Scheme => "must begin with http:// or https://".to_owned(),
            Self::UserInfo => "must not hold a user name or password".to_owned(),
            Self::Host => "must name a host".to_owned(),
            Self::Port(port) => format!("names port {port}; the port must be 80 or 443"),
            Self::Address(reason) => format!("names {reason}; the host must be on the public internet"),
        }
    }
}

/// Applies an [`Access`].
#[derive(Clone, Debug)]
pub(super) struct Guard {
    access: Access,
}

impl Guard {
    pub(super) fn new(access: Access) -> Self {
        Self { access }
    }

    /// Judges what the URL itself says. A host that is a name is judged again, address by address,
    /// once it is resolved.
    pub(super) fn check_url(&self, url: &Url) -> Result<(), Denial> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Denial::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Denial::UserInfo);
        }
        let port = url.port_or_known_default().ok_or(Denial::Scheme)?;
        // The parser has turned 2130706433, 0x7f.1 and their like into plain addresses.
        match url.host().ok_or(Denial::Host)? {
            Host::Ipv4(address) => self.check_address(IpAddr::V4(address), port),
            Host::Ipv6(address) => self.check_address(IpAddr::V6(address), port),
            Host::Domain(name) => self.check_name(name, port),
        }
    }

    /// Judges one address that is to be connected to.
    pub(super) fn check_address(&self, address: IpAddr, port: u16) -> Result<(), Denial> {
        if self.access.allow_loopback && is_loopback(address) {
            return Ok(());
        }
        if let Some((_, reason)) = DENIED_NETWORKS.iter().find(|(network, _)| network.contains(&address)) {
            return Err(Denial::Address(reason));
        }
        self.check_port(port)
    }

    fn check_name(&self, name: &str, port: u16) -> Result<(), Denial> {
        if name.trim_matches('.').is_empty() {
            return Err(Denial::Host);
        }
        if self.access.allow_loopback {
            // On loopback any port is open, and what the name means is not known yet.
            return Ok(());
        }
        let name = name.trim_end_matches('.');
        if name == "localhost" || name.ends_with(".localhost") {
            return Err(Denial::Address("a loopback address"));
        }
        self.check_port(port)
    }

    fn check_port(&self, port: u16) -> Result<(), Denial> {
        if matches!(port, 80 | 443) || self.access.extra_ports.contains(&port) {
            Ok(())
        } else {
            Err(Denial::Port(port))
        }
    }
}

/// Loopback as such, not in the disguise of an IPv4-mapped address.
fn is_loopback(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => Ipv4Addr::is_loopback(&address),
        IpAddr::V6(address) => address == Ipv6Addr::LOCALHOST,
    }
}
