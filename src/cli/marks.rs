//! Flags for the firewall marks by which networks with the same inside are told apart.

use clap::Args;

use super::CliError;
use crate::plan::Marks;

// Together they leave bits 0 to 7, and 12 and 13. There is no other run of eight, though these write to them too:
// - Cilium with ClusterMesh, the low bits of the cluster's id, 0 without (bpf/lib/overloadable_skb.h: set_identity_mark);
// - Antrea's Egress, the number of the source address (pkg/agent/types: SNATIPMarkMask 0xff);
// - Amazon's VPC CNI, bit 7 (pkg/networkutils: defaultConnmark 0x80).
// Beside those, bits 12 and 13 are left (--fwmark-mask 0x3000): two isolated networks.
/// Whose bits of the firewall mark are taken on many nodes.
const TAKEN: &[(&str, u32)] = &[
    // pkg/proxy/iptables/proxier.go: --iptables-masquerade-bit 14; kubelet's KUBE-MARK-DROP was bit 15.
    ("kube-proxy", 0x0000_c000),
    // felix/config/config_params.go: IptablesMarkMask; the whole of it is given out bit by bit, lowest first.
    ("Calico", 0xffff_0000),
    // bpf/lib/common.h: MARK_MAGIC_HOST_MASK.
    ("Cilium", 0x0000_0f00),
];

/// Which firewall marks are used.
#[derive(Debug, Args)]
pub(super) struct MarkArgs {
    /// Firewall mark of the first network that shares its inside addresses with another one; the others follow. The mask's lowest bit when omitted
    #[arg(long, value_name = "MARK", value_parser = mark, help_heading = "Host")]
    fwmark_base: Option<u32>,

    /// Bits of the firewall mark for these networks, one run of bits: as many networks as they have values but 0
    #[arg(long, value_name = "BITS", default_value = "0xff", value_parser = mark, help_heading = "Host")]
    fwmark_mask: u32,

    /// Take bits that kube-proxy, Calico or Cilium use too: only where none of them runs
    #[arg(long, help_heading = "Host")]
    allow_mark_clash: bool,
}

impl MarkArgs {
    /// The marks.
    ///
    /// # Errors
    /// Mask and base do not fit each other, or somebody else uses these bits.
    pub(super) fn marks(&self) -> Result<Marks, CliError> {
        let mask = self.fwmark_mask;
        let lowest = 1 << mask.trailing_zeros();
        let marks = Marks::new(self.fwmark_base.unwrap_or(lowest), mask);
        let marks = marks.ok_or_else(|| CliError::Input(self.misfit()))?;
        let clash: Vec<String> = TAKEN
            .iter()
            .filter(|(_, bits)| mask & bits != 0)
            .map(|(who, bits)| format!("{:#x} of {who}", mask & bits))
            .collect();
        if clash.is_empty() || self.allow_mark_clash {
            return Ok(marks);
        }
        Err(CliError::Input(format!(
            "--fwmark-mask {mask:#x} takes bits of the firewall mark that others use: {}; choose other bits, or add --allow-mark-clash if none of these \
             runs on the node",
            clash.join(", ")
        )))
    }

    fn misfit(&self) -> String {
        let mask = self.fwmark_mask;
        let Some(base) = self.fwmark_base.filter(|base| base & !mask != 0) else {
            return match self.fwmark_base.filter(|base| *base == mask && !mask.is_power_of_two()) {
                Some(base) => {
                    format!("--fwmark-base {base:#x} must be below --fwmark-mask: the last mark is that of packets from nobody inside")
                }
                None => format!("--fwmark-mask {mask:#x} must be one run of two bits or more, such as 0xff or 0xff0000"),
            };
        };
        format!("--fwmark-base {base:#x} has bits outside of --fwmark-mask {mask:#x}")
    }
}

/// A mark or bits of it, hexadecimal or decimal.
pub(super) fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed
        .ok()
        .filter(|bits| *bits != 0)
        .ok_or_else(|| "must be a number from 1 to 0xffffffff, such as 0x2000".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn args(base: Option<u32>, mask: u32, allow_mark_clash: bool) -> MarkArgs {
        MarkArgs {
            fwmark_base: base,
            fwmark_mask: mask,
            allow_mark_clash,
        }
    }

    #[test]
    fn the_first_mark_is_the_base_or_the_lowest_bit() {
        assert_eq!(args(None, 0xff, false).marks().unwrap(), Marks::default());
        let marks = args(None, 0x3000, false).marks().unwrap();
        assert_eq!(marks.of(1).unwrap().value, 0x1000);
        assert_eq!(args(Some(0x10), 0xff, false).marks().unwrap().of(2).unwrap().value, 0x11);
    }

    #[test]
    fn bits_of_others_are_refused_by_name_unless_allowed() {
        for (mask, who) in [
            (0x6000, "0x4000 of kube-proxy"),
            (0xc000, "0xc000 of kube-proxy"),
            (0xff_0000, "0xff0000 of Calico"),
            (0xff00, "0xc000 of kube-proxy, 0xf00 of Cilium"),
        ] {
            let said = args(None, mask, false).marks().unwrap_err().to_string();
            assert!(said.contains(who), "{said}");
            assert!(args(None, mask, true).marks().is_ok());
        }
    }

    #[test]
    fn a_mask_with_holes_and_a_base_outside_of_it_are_refused() {
        for mask in [0x5, 0x10] {
            let said = args(None, mask, true).marks().unwrap_err().to_string();
            assert!(said.contains("one run of two bits or more"), "{said}");
        }
        let said = args(Some(0xff), 0xff, true).marks().unwrap_err().to_string();
        assert!(said.contains("--fwmark-base 0xff must be below"), "{said}");
        let said = args(Some(0x100), 0xff, true).marks().unwrap_err().to_string();
        assert!(
            said.contains("--fwmark-base 0x100 has bits outside of --fwmark-mask 0xff"),
            "{said}"
        );
    }

    #[test]
    fn marks_are_hexadecimal_or_decimal() {
        assert_eq!((mark("0x2000"), mark("8192")), (Ok(0x2000), Ok(8192)));
        for bad in ["0", "0x0", "x", "0x100000000", "-1"] {
            assert!(mark(bad).is_err(), "{bad}");
        }
    }
}
