//! What a Corefile says of TLS: `tls` and `tls_servername` of a `forward`, and `tls` of a server
//! block.

use std::path::Path;

use super::{
    Block, CorefileError, Directive, Served, Surroundings, Word, single, unknown,
    zone::{self, Key},
};
use crate::dns::tls::{Identity, Listener, PORT, Peer};

/// What the braces of a `forward` say.
pub(super) fn peer(
    directive: &Directive,
    surroundings: &dyn Surroundings,
) -> Result<Peer, CorefileError> {
    let mut peer = Peer::default();
    for line in &directive.body {
        match &*line.name.text {
            "tls_servername" => peer.server_name = Some(single(line)?.text.clone()),
            "tls" => {
                let (identity, authorities) = match &line.arguments[..] {
                    [] => (None, None),
                    [ca] => (None, Some(ca)),
                    [certificate, key] => (Some((certificate, key)), None),
                    [certificate, key, ca] => (Some((certificate, key)), Some(ca)),
                    [_, _, _, word, ..] => {
                        return Err(word.error("tls has no more than CERT, KEY and CA"));
                    }
                };
                let identity = identity.map(|(certificate, key)| {
                    Ok(Identity {
                        certificates: text(certificate, surroundings)?,
                        key: text(key, surroundings)?,
                    })
                });
                peer.identity = identity.transpose()?;
                peer.authorities = authorities.map(|ca| text(ca, surroundings)).transpose()?;
                // Whoever is asked.
                let anyone = std::net::IpAddr::from([0, 0, 0, 0]);
                let nameless = Peer { server_name: None, ..peer.clone() };
                nameless.check(anyone).map_err(|why| line.name.error(why))?;
            }
            _ => {}
        }
    }
    Ok(peer)
}

/// Where a block with these keys for TLS is answered over it, and by which certificate: `tls CERT
/// KEY [CA]` and `client_auth` in its braces.
pub(super) fn listener(
    block: &Block,
    keys: &[Key<'_>],
    surroundings: &dyn Surroundings,
) -> Result<Option<Listener>, CorefileError> {
    let [first, others @ ..] = keys else { return Ok(None) };
    if let Some(other) = others.iter().find(|other| other.tls != first.tls) {
        return Err(other.word.error("all zones that are answered over TLS have one port"));
    }
    let directive = block.directives.iter().find(|directive| directive.name.text == "tls");
    let directive =
        directive.ok_or_else(|| first.word.error("tls:// needs tls CERT KEY in the block"))?;
    let [certificate, key, authorities @ ..] = &directive.arguments[..] else {
        return Err(directive.name.error("tls names a file of certificates and one of the key"));
    };
    let mut listener = Listener {
        port: first.tls.unwrap_or(PORT),
        identity: Identity {
            certificates: text(certificate, surroundings)?,
            key: text(key, surroundings)?,
        },
        authorities: None,
    };
    for line in &directive.body {
        match (&*line.name.text, &line.arguments[..], authorities) {
            ("client_auth", [mode], _) if mode.text == "nocert" => {}
            ("client_auth", [mode], [ca]) if mode.text == "require_and_verify" => {
                listener.authorities = Some(text(ca, surroundings)?);
            }
            ("client_auth", [mode, ..], _) => {
                let why = "client_auth must be nocert, or require_and_verify with a file of \
                           authorities behind CERT and KEY";
                return Err(mode.error(why));
            }
            _ => return Err(unknown(line, directive)),
        }
    }
    listener.server().map_err(|why| directive.name.error(why))?;
    Ok(Some(listener))
}

/// Over TLS the same is answered as in the clear: each zone of `keys` has a block for that too,
/// which is this one or says the same.
pub(super) fn check_zones(
    block: &Block,
    keys: &[Key<'_>],
    blocks: &[Block],
    served: &Served,
) -> Result<(), CorefileError> {
    for key in keys {
        let mut plain = None;
        for other in blocks {
            let own = zone::keys(&other.keys, served)?;
            if own.iter().any(|own| own.tls.is_none() && own.zone == key.zone) {
                plain = Some(other);
            }
        }
        if !plain.is_some_and(|plain| same(&plain.directives, &block.directives)) {
            let why = format!(
                "a zone is answered over TLS as in the clear, and {zone} is not: write \
                 \"{zone}:{port} tls://{zone}\" before one block",
                zone = key.zone,
                port = served.port,
            );
            return Err(key.word.error(why));
        }
    }
    Ok(())
}

/// Whether directives say the same, wherever they stand and whatever they say of TLS.
fn same(one: &[Directive], other: &[Directive]) -> bool {
    let texts = |words: &[Word]| words.iter().map(|word| word.text.clone()).collect::<Vec<_>>();
    let said = |all: &[Directive]| -> Vec<Directive> {
        all.iter().filter(|directive| directive.name.text != "tls").cloned().collect()
    };
    let (one, other) = (said(one), said(other));
    one.len() == other.len()
        && one.iter().zip(&other).all(|(one, other)| {
            one.name.text == other.name.text
                && texts(&one.arguments) == texts(&other.arguments)
                && same(&one.body, &other.body)
        })
}

/// The text of the file that a word names.
fn text(word: &Word, surroundings: &dyn Surroundings) -> Result<String, CorefileError> {
    surroundings
        .read(Path::new(&word.text))
        .map_err(|error| word.error(format!("{} can't be read: {error}", word.text)))
}
