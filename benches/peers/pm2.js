// Tells pm2's daemon what lines on standard input say, by pm2's programmatic API, and answers each with a line: `ok`,
// or what went wrong. A line is JSON: {"start": [PROGRAM, ARGUMENT...], "log": FILE}, {"delete": true} or
// {"kill": true}, which ends the daemon. PM2_HOME says where that is.
'use strict'
const pm2 = require('pm2')
const lines = require('readline').createInterface({ input: process.stdin })
const say = (error) => process.stdout.write(error ? `${String(error.message || error).replace(/\n/g, ' ')}\n` : 'ok\n')

pm2.connect((error) => {
  say(error)
  if (error) process.exit(1)
  lines.on('line', (line) => {
    const asked = JSON.parse(line)
    if (asked.start) {
      const [script, ...args] = asked.start
      pm2.start({
        name: 'bench', script, args, interpreter: 'none', autorestart: false, vizion: false, pmx: false,
        merge_logs: true, output: asked.log, error: '/dev/null'
      }, say)
    } else if (asked.delete) {
      pm2.delete('bench', say)
    } else if (asked.kill) {
      pm2.killDaemon((error) => { say(error); process.exit(0) })
    }
  })
})
