// SPDX-License-Identifier: GPL-2.0-only
/*
 * The checksum of SCTP, CRC32c (RFC 9260, appendix A), where a port changes. It has no addresses in it.
 *
 * A CRC is linear: what a change does to it doesn't depend on the rest of the packet, but for how many bytes follow. So
 * nobody has to read the packet. The ports are the first four bytes, so the checksum changes by what they changed by, each
 * bit on its way through as many zero bytes as the packet has. User space has written tables of such ways for 0 to 15
 * bytes, 0 to 15 times 16 bytes, and so on: each of the four steps is four look-ups, whatever the length. A checksum that
 * was wrong stays wrong.
 */

#define CRC_STEPS 4	/* four bits of the length each */
#define CRC_WORDS 65536

/* Four bytes as they stand in a packet. */
union crc_word {
	struct ports ports;
	__le32 word;
	u8 bytes[4];
};

/* What a change of the first four bytes of so many does to their CRC. */
static __always_inline __le32 crc_change(const struct crc32c *crc, union crc_word change, u32 bytes)
{
	u32 step, byte;

#pragma unroll
	for (step = 0; step < CRC_STEPS; step++) {
		u32 first = (step * 16 + (bytes >> 4 * step & 15)) * 1024;
		union crc_word sum = {};

#pragma unroll
		for (byte = 0; byte < sizeof(change); byte++) {
			u64 place = first + byte * 256 + change.bytes[byte];

			OPAQUE(place);	/* else the compiler knows that it is below CRC_WORDS, and some verifiers don't */
			sum.word ^= crc->words[place % CRC_WORDS];
		}
		change = sum;
	}
	return change.word;
}

/*
 * Write a new port in the place of one, in a packet with `bytes` from the ports on, or in what an error quotes of it; 0 if
 * nobody can tell its checksum. A checksum of zero says that there is none, as both ends agreed on (RFC 9653): it stays.
 * Returns what all that changes in a sum over the words.
 */
static __always_inline u32 translate_port_of_sctp(struct xdp_md *ctx, const struct packet *packet, __be16 *place,
						  __be16 port, u32 bytes)
{
	u32 row = 0, of_port = checksum_change16(*place, port);
	struct sctp *sctp = (void *)packet->ports;
	struct crc32c *crc = crc32c.lookup(&row);
	union crc_word change;
	__le32 before;

	change.ports = sctp->ports;
	*place = port;
	change.ports.source ^= sctp->ports.source;
	change.ports.destination ^= sctp->ports.destination;
	if (!bytes || !change.word || !crc || (void *)(sctp + 1) > (void *)(long)ctx->data_end || !sctp->checksum)
		return of_port;
	before = sctp->checksum;
	sctp->checksum = before ^ crc_change(crc, change, bytes);
	return of_port + checksum_change32(before, sctp->checksum);
}

/*
 * How long the packet was that an error quotes, from its ports on. 0 if the quote ends before the checksum, or if the packet
 * was cut into fragments behind the balancer: of the first one only its own length is known.
 */
static __always_inline u32 quoted_bytes_of_sctp(const struct packet *packet)
{
	const struct iphdr *quoted = packet->quoted;
	u32 bytes = bpf_ntohs(quoted->tot_len), header_bytes = ip_header_bytes(false);
	u32 least = header_bytes + sizeof(struct sctp);

	if (packet->ip_bytes < header_bytes + sizeof(struct icmphdr) + least || bytes < least ||
	    quoted->frag_off & bpf_htons(IP_MORE_FRAGMENTS))
		return 0;
	return bytes - header_bytes;
}
