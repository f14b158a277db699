//! `health`, `ready` and `prometheus`: where the resolver tells how it is.

use std::{net::IpAddr, time::Duration};

use super::{CorefileError, Directive, Warning, cache::duration, single, unknown};
use crate::dns::vitals::{Place, Told};

/// The longest lameduck: service managers kill what does not end.
const LAMEDUCK_MAX: Duration = Duration::from_mins(1);

/// Takes in a directive; false where it is another one.
pub(super) fn read(
    told: &mut Told,
    directive: &Directive,
    warnings: &mut Vec<Warning>,
) -> Result<bool, CorefileError> {
    let (places, port) = match &*directive.name.text {
        "health" => (&mut told.health, 8080),
        "ready" => (&mut told.ready, 8181),
        "prometheus" => (&mut told.metrics, 9153),
        _ => return Ok(false),
    };
    places.insert(place(directive, port)?);
    for line in &directive.body {
        match (&*directive.name.text, &*line.name.text) {
            ("health", "lameduck") => {
                let time = duration(single(line)?)?;
                if time > LAMEDUCK_MAX {
                    let why = format!("a lameduck has {} s at most", LAMEDUCK_MAX.as_secs());
                    return Err(line.name.error(why));
                }
                told.lameduck = Some(time);
            }
            // Once ready it stays so until the end, which is one of its values.
            ("ready", "monitor") => {
                let what = "monitor: as with until-ready".to_owned();
                warnings.push(Warning { at: line.name.at.clone(), what });
            }
            _ => return Err(unknown(line, directive)),
        }
    }
    Ok(true)
}

/// `[ADDRESS]:PORT`, or nothing. All addresses are those that only this node reaches.
fn place(directive: &Directive, port: u16) -> Result<Place, CorefileError> {
    let word = match &directive.arguments[..] {
        [] => return Ok((None, port)),
        [word] => word,
        _ => return Err(directive.name.error("one address at most")),
    };
    let named = match word.text.split_once(':') {
        Some(("", port)) => port.parse().ok().map(|port| (None, port)),
        Some(("localhost", port)) => {
            port.parse().ok().map(|port| (Some(IpAddr::from([127, 0, 0, 1])), port))
        }
        _ => word
            .text
            .parse::<std::net::SocketAddr>()
            .ok()
            .map(|at| ((!at.ip().is_unspecified()).then_some(at.ip()), at.port())),
    };
    named.filter(|(_, port)| *port != 0).ok_or_else(|| {
        let why = format!("{:?} is no address such as :9153 or 169.254.20.10:8080", word.text);
        word.error(why)
    })
}
