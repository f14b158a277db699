//! A UDP packet over IPv4 with an Ethernet header, byte by byte: what a program is run on.

use std::net::SocketAddrV4;

/// The length of the payload: the frame has 64 bytes then, the least that Ethernet carries.
const PAYLOAD: usize = 22;
const UDP: u8 = 17;

/// The frame from one address to another. The hop limit is the largest, for it is counted down.
pub fn udp(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    let mut datagram = Vec::new();
    datagram.extend(from.port().to_be_bytes());
    datagram.extend(to.port().to_be_bytes());
    datagram.extend(length(8 + PAYLOAD));
    datagram.extend([0; 2 + PAYLOAD]);

    let addresses = [from.ip().octets(), to.ip().octets()].concat();
    let pseudo = [&addresses[..], &[0, UDP], &length(datagram.len()), &datagram].concat();
    datagram[6..8].copy_from_slice(&checksum(&pseudo));

    let mut header = vec![0x45, 0];
    header.extend(length(20 + datagram.len()));
    header.extend([0, 1, 0x40, 0, 255, UDP, 0, 0]);
    header.extend(addresses);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);

    [&ethernet([0x08, 0x00])[..], &header, &datagram].concat()
}

/// A frame that is not IP: a program has nothing to do with it.
pub fn not_ip() -> Vec<u8> {
    let mut frame = ethernet([0x08, 0x06]).to_vec();
    frame.resize(64, 0);
    frame
}

fn ethernet(kind: [u8; 2]) -> [u8; 14] {
    let mut header = [0; 14];
    // To the loopback device, by which test runs have packets come in, from a locally administered
    // address.
    (header[6], header[11]) = (2, 2);
    header[12..].copy_from_slice(&kind);
    header
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).unwrap_or(0);
    (!folded).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_rfc_1071() {
        // The example of its section 3: the sum is ddf2.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), [0x22, 0x0d]);
    }

    #[test]
    fn headers_sum_up_to_nothing() {
        let address = |last, port| SocketAddrV4::new([172, 29, 0, last].into(), port);
        let frame = udp(address(100, 4000), address(11, 30_998));
        assert_eq!(frame.len(), 64);
        assert_eq!(checksum(&frame[14..34]), [0, 0]);
        let pseudo = [&frame[26..34], &[0, UDP, 0, 30], &frame[34..]].concat();
        assert_eq!(checksum(&pseudo), [0, 0]);
    }
}
