"""How pages look: quiet, so that the pictures are what one sees; light and dark, from a phone to a wide screen."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--ink:#211f1b;--soft:#6d675c;--paper:#f6f3ed;--card:#fffdf9;--line:#e2dccf;--mat:#ece6da;
--accent:#9a4f23;--chip:#f3e3d3}
@media (prefers-color-scheme:dark){:root{--ink:#ece7dd;--soft:#a69f92;--paper:#151412;--card:#1f1d1a;--line:#35312b;
--mat:#2a2723;--accent:#e6a06d;--chip:#3a2a1e}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC",sans-serif;
-webkit-text-size-adjust:100%}
header,main,footer{max-width:1240px;margin:0 auto;padding:0 clamp(16px,4vw,40px)}
header{padding-top:clamp(20px,4vw,40px)}
p,dl,ul,ol,dd,h1{margin:0;padding:0}
ul,ol{list-style:none}
.brand{font-size:.8125rem;letter-spacing:.09em;text-transform:uppercase;color:var(--soft);margin-bottom:18px}
.brand span{letter-spacing:.2em;margin-left:.35em}
.question{display:flex;gap:22px;align-items:center;flex-wrap:wrap}
.question>div:last-child{flex:1 1 300px;min-width:0}
.question .path{margin-top:6px}
h1{font:600 clamp(1.6rem,1.1rem + 2.2vw,2.5rem)/1.15 "Iowan Old Style","Palatino Linotype",Palatino,Georgia,
"Noto Serif","Noto Serif CJK SC",serif;letter-spacing:-.01em;overflow-wrap:anywhere}
.asked{flex:0 0 auto;border-radius:12px;overflow:hidden;background:var(--mat);border:1px solid var(--line)}
.asked img{display:block;width:auto;height:auto;max-width:min(190px,40vw);max-height:190px}
.asked.none{width:150px;height:112px}
.kind{color:var(--soft);margin-top:10px;max-width:74ch}
.chip{display:inline-block;background:var(--chip);color:var(--accent);border-radius:999px;padding:1px 11px;
font-size:.875rem;font-weight:600;margin-right:6px}
.facts{display:flex;flex-wrap:wrap;gap:8px 34px;margin:26px 0 0;padding:14px 0;border-top:1px solid var(--line)}
.facts dt{font-size:.75rem;letter-spacing:.05em;color:var(--soft)}
.facts dd{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.notes{border-left:3px solid var(--accent);padding:2px 0 2px 14px;margin:2px 0 18px;color:var(--soft);max-width:75ch}
.notes li+li{margin-top:4px}
.hits{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));gap:20px;margin-top:6px}
.hit{background:var(--card);border:1px solid var(--line);border-radius:14px;overflow:hidden;padding-bottom:14px;
display:flex;flex-direction:column;min-width:0}
.hit>*{margin-left:14px;margin-right:14px}
.hit>.thumb{margin:0 0 12px}
.thumb{position:relative;aspect-ratio:4/3;background:var(--mat)}
.thumb img{position:absolute;inset:0;width:100%;height:100%;object-fit:contain}
.none{display:flex;align-items:center;justify-content:center;color:var(--soft);font-size:.875rem;text-align:center;
background:repeating-linear-gradient(135deg,var(--mat) 0 12px,transparent 12px 24px)}
.none span{background:var(--card);border-radius:8px;padding:6px 12px;margin:12px;overflow-wrap:anywhere}
.line{display:flex;align-items:center;gap:10px;font-variant-numeric:tabular-nums}
.rank{font-weight:700;min-width:1.3em}
.bar{flex:1;height:5px;border-radius:3px;background:var(--mat);overflow:hidden}
.bar i{display:block;height:100%;background:var(--accent);border-radius:3px}
.score{color:var(--soft);font-size:.9375rem;margin-left:auto}
.name{font-weight:600;margin-top:6px;overflow-wrap:anywhere}
.path{font:.8125rem/1.45 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;color:var(--soft);
overflow-wrap:anywhere}
.places .path+.path{margin-top:4px}
.bytes{opacity:.75}
details{margin-top:4px;font-size:.8125rem;color:var(--soft)}
summary{cursor:pointer}
.tags{margin-top:auto;padding-top:10px;display:flex;flex-wrap:wrap;gap:6px}
.tag{font-size:.75rem;border:1px solid var(--line);border-radius:999px;padding:1px 9px;color:var(--soft);
overflow-wrap:anywhere}
.digest{font:.6875rem/1.4 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;color:var(--soft);
overflow:hidden;text-overflow:ellipsis;white-space:nowrap;margin-top:10px;opacity:.8}
.nothing{padding:60px 0;text-align:center;color:var(--soft)}
code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.9em}
footer{color:var(--soft);font-size:.8125rem;padding-top:34px;padding-bottom:40px}
"""
