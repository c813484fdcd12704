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
 * Write a new port in the place of one. A checksum of zero says that there is none, as both ends agreed on (RFC 9653): it
 * stays.
 */
static __always_inline void translate_port_of_sctp(struct xdp_md *ctx, const struct packet *packet, __be16 *place,
						   __be16 port)
{
	u32 row = 0, bytes = packet->ip_bytes - ip_header_bytes(false);
	struct sctp *sctp = (void *)packet->ports;
	struct crc32c *crc = crc32c.lookup(&row);
	union crc_word change;

	if (!crc || (void *)(sctp + 1) > (void *)(long)ctx->data_end || *place == port)
		return;
	change.ports = sctp->ports;
	*place = port;
	change.ports.source ^= sctp->ports.source;
	change.ports.destination ^= sctp->ports.destination;
	if (sctp->checksum)
		sctp->checksum ^= crc_change(crc, change, bytes);
}
