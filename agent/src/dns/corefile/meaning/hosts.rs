//! `hosts`: a table of names, in a file and in the braces.

use std::path::Path;

use hickory_proto::rr::Name;

use super::{CorefileError, Directive, Surroundings, number, single, zone};
use crate::dns::hosts::Hosts;

/// How long clients may keep names of a table where nothing is said, in seconds.
const TTL: u32 = 3600;
/// The table where none is named.
const FILE: &str = "/etc/hosts";

pub(super) fn read(
    directive: &Directive,
    block: &[Name],
    surroundings: &dyn Surroundings,
) -> Result<Hosts, CorefileError> {
    let mut hosts = Hosts::new(TTL);
    let zones = zone::list(directive.arguments.get(1..).unwrap_or_default())?;
    if let Some(word) = directive.arguments.get(1)
        && zones != block
    {
        return Err(word.error("zones of a table are not supported; give them a server block"));
    }
    let mut inline = String::new();
    for line in &directive.body {
        match &*line.name.text {
            "ttl" => hosts.ttl = u32::try_from(number(single(line)?, 1, 65_535)?).unwrap_or(TTL),
            "no_reverse" => hosts.no_reverse = true,
            // Files are looked at all the time.
            "reload" => {}
            "fallthrough" if line.arguments.is_empty() => hosts.fallthrough = vec![Name::root()],
            "fallthrough" => hosts.fallthrough = zone::list(&line.arguments)?,
            address if address.parse::<std::net::IpAddr>().is_ok() => {
                inline.push_str(address);
                for name in &line.arguments {
                    inline.push(' ');
                    inline.push_str(&name.text);
                }
                inline.push('\n');
            }
            other => {
                let why = format!("{other:?} is neither an address nor an option of hosts");
                return Err(line.name.error(why));
            }
        }
    }
    // The machine's own beside what stands in the braces, where none is named. A file that is not
    // there yet is an empty one. Both as CoreDNS has it.
    let named = directive.arguments.first();
    let file = named.map_or(FILE, |word| &*word.text);
    let table = surroundings.read_if_there(Path::new(file)).map_err(|error| {
        named.unwrap_or(&directive.name).error(format!("the table {file} can't be read: {error}"))
    })?;
    hosts.extend(&table);
    hosts.extend(&inline);
    Ok(hosts)
}
