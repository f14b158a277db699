//! Zones as a Corefile writes them: names, or ranges of addresses that mean their reverse names.

use hickory_proto::rr::Name;

use super::{CorefileError, Served, Word};
use crate::dns::{notation, tls};

/// A zone of a server block.
pub(super) struct Key<'a> {
    pub(super) zone: Name,
    pub(super) word: &'a Word,
    /// The port, where it is answered over TLS there.
    pub(super) tls: Option<u16>,
}

/// The zones that the words before a block's brace name, such as `.:53` and `dns://a.example`.
pub(super) fn keys<'a>(words: &'a [Word], served: &Served) -> Result<Vec<Key<'a>>, CorefileError> {
    let mut keys = Vec::new();
    for word in words {
        for text in word.text.split(',').filter(|text| !text.is_empty()) {
            let (text, over_tls) = match text.split_once("://") {
                Some(("dns", rest)) => (rest, false),
                Some(("tls", rest)) => (rest, true),
                Some((other, _)) => {
                    let why = format!(
                        "{other}:// is not supported: answers are by UDP and TCP, and over TLS"
                    );
                    return Err(word.error(why));
                }
                None => (text, false),
            };
            let (zone, port) = match text.rsplit_once(':') {
                Some((zone, port)) if !zone.contains(':') => (zone, Some(port)),
                _ => (text, None),
            };
            let number = port.map_or(Ok(tls::PORT), str::parse);
            let tls = if over_tls {
                let why = |_| word.error(format!("{:?} is no port", port.unwrap_or_default()));
                Some(number.map_err(why)?)
            } else {
                None
            };
            if let Some(port) = port
                && !over_tls
                && port.parse() != Ok(served.port)
            {
                let why =
                    format!("port {port}: the agent answers on port {} (dnsPort)", served.port);
                return Err(word.error(why));
            }
            let zones = notation::zones(zone).map_err(|why| word.error(why))?;
            keys.extend(zones.into_iter().map(|zone| Key { zone, word, tls }));
        }
    }
    Ok(keys)
}

/// The zones that words name.
pub(super) fn list(words: &[Word]) -> Result<Vec<Name>, CorefileError> {
    let mut all = Vec::new();
    for word in words {
        all.extend(notation::zones(&word.text).map_err(|why| word.error(why))?);
    }
    Ok(all)
}
