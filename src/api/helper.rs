//! Connection tracking helpers: the kernel's readers of protocols that negotiate further connections in band.
//!
//! Names, transports and families are the kernel's own (`net/netfilter/nf_conntrack_*.c`): a `-j CT --helper` rule of another transport or family is
//! refused by it. Which of them a node has is for its agent to find out. Pure.

// The derived schemas live in private copies of the structs.
#![allow(unreachable_pub)]

use std::fmt;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// A protocol that announces the addresses and ports of further connections in what it says.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "lowercase")]
pub enum HelperName {
    /// Amanda backup, UDP 10080, both families (`nf_conntrack_amanda.c`).
    Amanda,
    /// FTP, RFC 959 and RFC 2428, TCP 21, both families (`nf_conntrack_ftp.c`). TLS hides what it would have to read.
    Ftp,
    /// H.323 calls: Q.931 at TCP 1720, RAS at UDP 1719 (`nf_conntrack_h323_main.c`). Both families are tracked, but addresses are rewritten in IPv4
    /// only (`nf_nat_h323.c`), so for us it is IPv4 only.
    H323,
    /// DCC of IRC, TCP 6667, IPv4 only (`nf_conntrack_irc.c`).
    Irc,
    /// PPTP, RFC 2637, TCP 1723 and the GRE that follows, IPv4 only (`nf_conntrack_pptp.c`).
    Pptp,
    /// SIP, RFC 3261, UDP and TCP 5060, both families (`nf_conntrack_sip.c`). TLS hides what it would have to read.
    Sip,
    /// The sender's own address in what it sends of SNMP version 2c, such as traps at UDP 162; IPv4 only (`nf_conntrack_snmp.c`,
    /// `nf_nat_snmp_basic_main.c`). Traps of version 1 and all of version 3 are dropped where it is.
    Snmp,
    /// TFTP, RFC 1350, UDP 69, both families (`nf_conntrack_tftp.c`).
    Tftp,
}

impl HelperName {
    /// All of them, sorted.
    pub const ALL: [Self; 8] = [
        Self::Amanda,
        Self::Ftp,
        Self::H323,
        Self::Irc,
        Self::Pptp,
        Self::Sip,
        Self::Snmp,
        Self::Tftp,
    ];

    /// The word that people write.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amanda => "amanda",
            Self::Ftp => "ftp",
            Self::H323 => "h323",
            Self::Irc => "irc",
            Self::Pptp => "pptp",
            Self::Sip => "sip",
            Self::Snmp => "snmp",
            Self::Tftp => "tftp",
        }
    }

    /// Whether it can be used for connections over IPv6.
    #[must_use]
    pub const fn ipv6(self) -> bool {
        matches!(self, Self::Amanda | Self::Ftp | Self::Sip | Self::Tftp)
    }
}

impl fmt::Display for HelperName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A helper at a port.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HelperUse {
    /// One of the network's `allowedHelpers`: amanda (UDP), ftp (TCP), h323 (TCP and UDP, IPv4 only), irc (TCP, IPv4 only), pptp (TCP, IPv4 only),
    /// sip (TCP and UDP), snmp (UDP, IPv4 only), tftp (UDP).
    pub name: HelperName,
    /// The port at the virtual address that the protocol is spoken at, such as 21 for ftp. 1 to 65535. If the mapping has `ports`, one of them must
    /// cover it.
    #[schemars(schema_with = "schema::port")]
    pub port: u16,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_word_is_what_is_written_and_read() {
        for name in HelperName::ALL {
            assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
            assert_eq!(serde_json::from_value::<HelperName>(name.to_string().into()).unwrap(), name);
        }
        assert!(HelperName::ALL.is_sorted());
    }
}
