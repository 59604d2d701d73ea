//! Machines inside use virtual addresses, of others and their own.

use crate::lab::dual::{CLIENT, DB, VIRTUAL_DB, VIRTUAL_WEB, WEB, at};

bridges! {
    /// A mapped machine, an unmapped one and the machine itself get through, whatever is done with sources; what machines say to each other directly is not
    /// touched.
    fn machines_reach_each_other_and_themselves_by_virtual_addresses(dual) {
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.mappings("db", VIRTUAL_DB, DB, "");
        for settings in ["sourceTranslation: Masquerade", "sourceTranslation: Preserve", "sourceTranslation: Preserve\negress: {default: Allow}"] {
            dual.network("", "", settings);
            dual.converge();
            for n in [0, 1] {
                for (ns, who) in [(&dual.db, "another"), (&dual.mail, "an unmapped one"), (&dual.web, "itself")] {
                    let what = format!("{who} to {} with {settings:?}", VIRTUAL_WEB[n]);
                    let call = ns.tcp(&at(VIRTUAL_WEB[n], 80));
                    let mut call = call.unwrap_or_else(|| panic!("{what}\n{}", dual.rules()));
                    assert!(call.server == "web" && call.works(), "{what}");
                    assert_eq!(ns.udp(&at(VIRTUAL_WEB[n], 80)).unwrap_or_else(|| panic!("UDP of {what}")).0, "web");
                    assert!(ns.echoes(VIRTUAL_WEB[n]), "ping of {what}");
                }
                let direct = dual.db.tcp(&at(WEB[n], 80)).expect("directly");
                assert_eq!((direct.server.as_str(), direct.seen_as.ip().to_string().as_str()), ("web", DB[n]));
                assert_eq!(dual.client.tcp(&at(VIRTUAL_WEB[n], 80)).expect("from outside").server, "web");
            }
        }
        dual.network("", "", "");
        dual.converge();
        for n in [0, 1] {
            dual.is_denied(1, "the client's own address stays out of reach", || dual.web.tcp_is_dropped(&at(CLIENT[n], 80)));
        }
    }
}
